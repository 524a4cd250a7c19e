# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""`Engine`, compiled: reads and writes between the host's memory and blocks in memory.

A command's way from the doorbell to the completion is C here, for what is plain: whole buffers in
memory that is shared or that the bus moves, no flags, no interrupt. Whatever else there is, and everything that is to fail, is
left to Python before anything of it was done; so there is one place that knows how to fail.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free

from softcard.rings.ring cimport (
    ring_fetch,
    ring_load32,
    ring_load64,
    ring_nanoseconds,
    ring_pause,
    ring_publish64,
)
from softcard.rings.windows cimport Piece, Windows, gather, scatter

from softcard.cards.nvme.engine import BYTES_PER_TURN, COMMAND_COST, UNIT, Engine
from softcard.cards.nvme.namespace import MAX_NAMESPACES
from softcard.cards.nvme.queues import UNSEEN, CompletionQueue, SubmissionQueue
from softcard.cards.nvme.registers import PAGE_SIZE_MIN
from softcard.errors import DmaError
from softcard.model.link import MAX_SEGMENTS, SEGMENT
from softcard.model.link import TO_BUS as BUS

cdef enum:
    # Sizes and opcodes; see command.py. The compiler wants to know them.
    ENTRY_SIZE = 64
    COMPLETION_SIZE = 16
    DOORBELL_PAIR = 8
    PRP_SIZE = 8
    WRITE = 1
    READ = 2
    NAMESPACES = 32
    # The second word of a completion queue entry; see queues.py.
    SQ_ID_SHIFT = 16
    CID_SHIFT = 32
    PHASE_SHIFT = 48
    # Nanoseconds: how long looking at doorbells may take in all, and with nothing to be found.
    TURN = 50_000
    IDLE = 2_000
    # Completions that are posted together at most, and the bytes that their commands moved: a host
    # that rings a doorbell for what it sees at once rings fewer. Where doorbells are stores, four
    # completions, which share a line of the cache, are the best compromise.
    POSTS = 64
    BYTES_TOGETHER = 65536
    BYTES_TOGETHER_POLLED = 16384
    # The same where the bus moves memory, which it does while the host looks at what came before.
    BYTES_MOVED = 1 << 20
    # The flags of a segment; see link.py. Segments of one call, about as many as a full batch of
    # large commands has.
    TO_BUS = 1
    SEGMENTS = 8192
    # What a run of a queue tells: it has more to do right away; Python code was called.
    MORE = 1
    CALLED = 2

cdef long TURN_BYTES = BYTES_PER_TURN
cdef long COST = COMMAND_COST

assert MAX_NAMESPACES == NAMESPACES
assert BUS == TO_BUS
assert SEGMENT.size == sizeof(Segment)


cdef struct Entry:
    uint8_t opcode
    uint8_t flags
    uint16_t cid
    uint32_t nsid
    uint64_t reserved
    uint64_t metadata
    uint64_t prp1
    uint64_t prp2
    uint64_t slba
    uint32_t dw12
    uint32_t dw13
    uint64_t dw14


cdef struct Space:
    char *data
    uint64_t blocks
    int shift
    Py_buffer buffer


cdef struct Segment:
    uint64_t address
    uint64_t memory
    uint32_t length
    uint32_t flags


cdef struct Planned:
    # Segments up to the command's last, the bytes that it moves, and in which direction.
    Py_ssize_t segments
    uint64_t length
    bint reads


cdef class SubmissionState


cdef class CompletionState:
    """What C needs of a completion queue."""

    cdef public uint64_t address
    cdef public long qid, size, head, tail, seen_head
    cdef public uint64_t phase
    cdef public bint interrupts, fresh, mapped
    cdef public object backlog, users

    cdef inline long room(self) noexcept:
        cdef long room = self.head - self.tail - 1
        return room if room >= 0 else room + self.size

    cdef bint takes_head(self, uint32_t head) except -1:
        """Whether the host's new head is possible, and nothing waits for it."""
        cdef long taken = <long>head - self.head, posted = self.tail - self.head
        cdef SubmissionState sq
        if (
            head >= self.size
            or (taken if taken >= 0 else taken + self.size)
            > (posted if posted >= 0 else posted + self.size)
            or self.backlog
        ):
            return False
        for sq in <set>self.users:
            if sq.waiting:
                return False
        return True


cdef class SubmissionState:
    """What C needs of a submission queue."""

    cdef public uint64_t address
    cdef public long qid, size, head, tail, seen_tail
    cdef public bint waiting, mapped
    cdef public CompletionState cq

    cdef inline bint takes_tail(self, uint32_t tail) noexcept:
        """Whether the host's new tail is possible; see `SubmissionQueue.move_tail`."""
        cdef long pending = self.tail - self.head, added = <long>tail - self.tail
        return tail < self.size and (
            (pending if pending >= 0 else pending + self.size)
            + (added if added >= 0 else added + self.size)
            < self.size
        )


class CompiledCompletionQueue(CompletionState, CompletionQueue):
    """A completion queue whose state C can reach."""


class CompiledSubmissionQueue(SubmissionState, SubmissionQueue):
    """A submission queue whose state C can reach."""


cdef void post_all(CompletionState cq, uint64_t *words, const uint64_t *posts, int count) noexcept:
    """Post completions so that the host sees the first of them when all are there."""
    cdef long first = cq.tail, at
    cdef uint64_t phase
    cdef int index
    if not count:
        return
    cq.tail += count
    if cq.tail >= cq.size:
        cq.tail -= cq.size
    for index in range(count - 1, -1, -1):
        at, phase = first + index, cq.phase
        if at >= cq.size:
            at, phase = at - cq.size, phase ^ <uint64_t>1 << PHASE_SHIFT
        words[at * 2] = 0
        # The word with the phase bit comes last: the host looks for it.
        ring_publish64(words + at * 2 + 1, posts[index] | phase)
    if cq.tail < first:
        cq.phase ^= <uint64_t>1 << PHASE_SHIFT
    cq.fresh = True


cdef class Core:
    """The compiled half of `CompiledEngine`."""

    cdef public bint running, inspecting
    cdef object _memory, _namespaces, _health, _executor, _dma
    cdef Windows _windows
    cdef Space _spaces[NAMESPACES + 1]
    cdef Piece *_pieces
    cdef Py_ssize_t _piece_count
    cdef uint64_t _page_size, _max_transfer
    # The bus moves memory: segments for all commands of a batch, and where the next one begins in
    # this process.
    cdef bint _moving
    cdef Segment *_segments
    cdef Py_ssize_t _segment_count, _segment_first, _segments_max
    cdef uint32_t _direction
    cdef char *_place
    cdef Planned _planned[POSTS]
    # Memory of the host was forgotten since the queue that runs was found.
    cdef bint _forgotten
    cdef uint64_t _reads, _writes, _bytes_read, _bytes_written, _busy

    def __dealloc__(self):
        self._drop_spaces()
        free(self._pieces)
        free(self._segments)

    def set_up(self, dma, memory, namespaces, health, executor, uint64_t max_transfer):
        """Called once."""
        self._dma = dma
        self._windows = Windows(dma)
        self._memory = memory
        self._namespaces = namespaces
        self._health = health
        self._executor = executor
        self._max_transfer = max_transfer
        self._pieces = <Piece *>calloc(max_transfer // PAGE_SIZE_MIN + 2, sizeof(Piece))
        self._segments_max = max_transfer // PAGE_SIZE_MIN + 2
        self._segments = <Segment *>calloc(SEGMENTS + self._segments_max, sizeof(Segment))
        if self._pieces == NULL or self._segments == NULL:
            raise MemoryError
        assert SEGMENTS + self._segments_max <= MAX_SEGMENTS

    def namespaces_changed(self):
        """See `Namespaces.changed`."""
        cdef Space *space
        self._drop_spaces()
        for nsid, namespace in self._namespaces.ready.items():
            if namespace.view is not None:
                space = &self._spaces[<int>nsid]
                PyObject_GetBuffer(namespace.view, &space.buffer, PyBUF_WRITABLE)
                space.data = <char *>space.buffer.buf
                space.blocks = namespace.blocks
                space.shift = namespace.shift

    cdef void _drop_spaces(self) noexcept:
        cdef int nsid
        for nsid in range(NAMESPACES + 1):
            if self._spaces[nsid].data != NULL:
                PyBuffer_Release(&self._spaces[nsid].buffer)
                self._spaces[nsid].data = NULL

    def forget(self, address, size):
        """See `Engine.forget`."""
        self._forgotten = True
        self._windows.forget(address, size)

    def forget_all(self):
        """See `Engine.forget_all`."""
        self._forgotten = True
        self._windows.forget_all()

    # Doorbells.

    def poll(self, doorbells):
        """See `Engine.poll`; looks again and again for as long as there is something."""
        cdef Py_buffer words
        queues = doorbells.queues
        if not queues:
            return False
        if not self._may_run():
            return Engine.poll(self, doorbells)
        PyObject_GetBuffer(doorbells.words, &words, PyBUF_SIMPLE)
        try:
            return self._look(doorbells, queues, <const char *>words.buf)
        finally:
            PyBuffer_Release(&words)
            self._count()

    cdef bint _look(self, doorbells, tuple queues, const char *words) except -1:
        cdef uint64_t now = ring_nanoseconds(), idle = 0, end = now + TURN
        cdef bint found, busy = False, heads = doorbells.wants_heads
        cdef SubmissionState sq
        while True:
            found = False
            for sq in queues:
                if ring_load32(words + sq.qid * DOORBELL_PAIR) != <uint32_t>sq.seen_tail:
                    found = busy = True
                    if not self._check(doorbells, sq, words, heads):
                        # Python code was called, which may have ended everything.
                        if doorbells.queues is not queues:
                            return True
                        heads = doorbells.wants_heads
                elif (heads or sq.waiting) and doorbells.check_head(sq.cq):
                    found = busy = True
            now = ring_nanoseconds()
            if found:
                idle = now + IDLE
            elif now >= idle:
                return busy
            else:
                ring_pause()
            if now >= end:
                return busy

    cdef bint _check(self, doorbells, SubmissionState sq, const char *words, bint heads) except -1:
        """Run a queue whose tail has moved; False where Python code had to be called."""
        cdef CompletionState cq = sq.cq
        cdef uint32_t tail = ring_load32(words + sq.qid * DOORBELL_PAIR)
        cdef uint32_t head = ring_load32(words + cq.qid * DOORBELL_PAIR + DOORBELL_PAIR // 2)
        if sq.qid == 0 or heads or not (sq.mapped and cq.mapped and sq.takes_tail(tail)):
            doorbells.check(sq)
            return False
        if head != <uint32_t>cq.seen_head:
            if not cq.takes_head(head):
                doorbells.check(sq)
                return False
            cq.seen_head = cq.head = head
        sq.seen_tail = sq.tail = tail
        return self._serve(sq, BYTES_TOGETHER_POLLED)

    def ring(self, list noted, dict sqs, dict cqs):
        """See `Engine.ring`."""
        cdef CompletionState cq
        cdef SubmissionState sq
        cdef uint32_t index, value
        cdef list left = []
        if not self._may_run():
            return noted
        for doorbell in noted:
            index, value = <tuple>doorbell
            if index & 1:
                cq = cqs.get(index >> 1)
                if cq is None or not cq.takes_head(value):
                    left.append(doorbell)
                else:
                    cq.head = value
        for doorbell in noted:
            index, value = <tuple>doorbell
            if not index & 1:
                sq = sqs.get(index >> 1)
                if (
                    sq is None
                    or not index
                    or not (sq.mapped and sq.cq.mapped and sq.takes_tail(value))
                ):
                    left.append(doorbell)
                else:
                    sq.tail = value
                    self._serve(sq, BYTES_TOGETHER)
        self._count()
        return left

    cdef bint _serve(self, SubmissionState sq, uint64_t together) except -1:
        """Run a queue and tell the host; False where Python code had to be called."""
        cdef CompletionState cq = sq.cq
        cdef uint64_t start = ring_nanoseconds()
        cdef int result
        self.running = True
        try:
            result = self._run(sq, together)
        finally:
            self.running = False
            self._busy += ring_nanoseconds() - start
        if result or cq.interrupts:
            self._executor.ran(sq, bool(result & MORE))
            return False
        sq.waiting = sq.head != sq.tail
        cq.fresh = False
        return True

    # Commands.

    def run(self, SubmissionState sq):
        """See `Engine.run`."""
        if not self._may_run():
            return Engine.run(self, sq)
        try:
            return bool(self._run(sq, BYTES_TOGETHER) & MORE)
        finally:
            self._count()

    cdef bint _may_run(self) except -1:
        self._page_size = self._memory.page_size
        self._moving = self._memory.moves
        return self._moving or self._memory.shared

    cdef int _run(self, SubmissionState sq, uint64_t together) except -1:
        """Run a queue, and post completions of so many bytes together; `MORE` and `CALLED`."""
        cdef CompletionState cq = sq.cq
        cdef uint64_t sq_id = <uint64_t>sq.qid << SQ_ID_SHIFT
        cdef long room = 0 if cq.backlog else cq.room()
        cdef long offset, budget = TURN_BYTES
        cdef uint64_t moved
        cdef const char *following
        cdef int result = 0, posted = 0
        cdef uint64_t held = 0
        cdef uint64_t posts[POSTS]
        cdef bint done
        cdef Entry entry
        cdef char *entries
        cdef uint64_t *words
        self._forgotten = False
        if self._moving:
            return self._run_moving(sq)
        if not self._find(sq, &entries, &words):
            return CALLED | (MORE if Engine.run(self, sq) else 0)
        while sq.head != sq.tail and room and budget > 0:
            offset = sq.head * ENTRY_SIZE
            ring_fetch(&entry, entries + offset, ENTRY_SIZE)
            sq.head += 1
            if sq.head == sq.size:
                sq.head = 0
            if self.inspecting:
                post_all(cq, words, posts, posted)
                posted = 0
                result = CALLED
                done = self._executor.inspect(sq, offset)
                if self._forgotten or not self._find(sq, &entries, &words):
                    return CALLED
                room = 0 if cq.backlog else cq.room()
                if done:
                    continue
            following = NULL
            if sq.head != sq.tail:
                following = self._blocks(<const Entry *>(entries + sq.head * ENTRY_SIZE))
            moved = self._move(&entry, following)
            if moved:
                posts[posted] = <uint64_t>sq.head | sq_id | <uint64_t>entry.cid << CID_SHIFT
                posted += 1
                held += moved
                if posted == POSTS or held >= together:
                    post_all(cq, words, posts, posted)
                    posted = 0
                    held = 0
                room -= 1
                budget -= moved
                continue
            post_all(cq, words, posts, posted)
            posted = 0
            result = CALLED
            budget -= <long>self._executor.execute(sq, offset) + COST
            if self._forgotten or not self._find(sq, &entries, &words):
                return CALLED
            room = 0 if cq.backlog else cq.room()
        post_all(cq, words, posts, posted)
        return result | (MORE if room and sq.head != sq.tail else 0)

    cdef int _run_moving(self, SubmissionState sq) except -1:
        """The same where the bus moves memory: a batch of commands by one call."""
        cdef CompletionState cq = sq.cq
        cdef long room, offset, budget = BYTES_MOVED
        cdef int planned, moved, result = 0
        cdef uint64_t posts[POSTS]
        cdef char *entries
        cdef uint64_t *words
        while True:
            if not self._find(sq, &entries, &words):
                return CALLED | (MORE if Engine.run(self, sq) else 0)
            room = 0 if cq.backlog else cq.room()
            if sq.head == sq.tail or not room or budget <= 0:
                return result | (MORE if room and sq.head != sq.tail else 0)
            planned = 0 if self.inspecting else self._plan(sq, entries, posts, room, &budget)
            if planned:
                moved = self._transfer(planned)
                post_all(cq, words, posts, moved)
                if moved == planned:
                    continue
                # Python finds out what is wrong with this one; those behind it are to come yet.
                sq.head = <long>(posts[moved] & 0xFFFF) - 1
                if sq.head < 0:
                    sq.head = sq.size - 1
            result = CALLED
            offset = sq.head * ENTRY_SIZE
            sq.head += 1
            if sq.head == sq.size:
                sq.head = 0
            if not (self.inspecting and self._executor.inspect(sq, offset)):
                budget -= <long>self._executor.execute(sq, offset) + COST
            if self._forgotten:
                return CALLED

    cdef int _plan(
        self, SubmissionState sq, const char *entries, uint64_t *posts, long room, long *budget
    ) except -1:
        """Plan plain commands as far as they go; how many. Their completions are in `posts`."""
        cdef uint64_t sq_id = <uint64_t>sq.qid << SQ_ID_SHIFT
        cdef uint64_t moved
        cdef int planned = 0
        cdef Entry entry
        self._segment_count = 0
        while (
            sq.head != sq.tail
            and planned < POSTS
            and planned < room
            and budget[0] > 0
            and self._segment_count < SEGMENTS
        ):
            ring_fetch(&entry, entries + sq.head * ENTRY_SIZE, ENTRY_SIZE)
            self._segment_first = self._segment_count
            moved = self._move(&entry, NULL)
            if not moved:
                self._segment_count = self._segment_first
                break
            sq.head += 1
            if sq.head == sq.size:
                sq.head = 0
            posts[planned] = <uint64_t>sq.head | sq_id | <uint64_t>entry.cid << CID_SHIFT
            self._planned[planned] = Planned(self._segment_count, moved, entry.opcode == READ)
            planned += 1
            budget[0] -= moved
        return planned

    cdef int _transfer(self, int planned) except -1:
        """Move the data of planned commands; how many of these were moved as a whole."""
        cdef Py_ssize_t done = self._segment_count
        cdef int index
        try:
            self._dma.move(<uintptr_t>self._segments, done)
        except DmaError as error:
            done = error.done
        for index in range(planned):
            if self._planned[index].segments > done:
                return index
            self._tally(self._planned[index].reads, self._planned[index].length)
        return planned

    cdef inline void _tally(self, bint reads, uint64_t length) noexcept:
        if reads:
            self._reads += 1
            self._bytes_read += length
        else:
            self._writes += 1
            self._bytes_written += length

    cdef bint _find(self, SubmissionState sq, char **entries, uint64_t **words) except -1:
        """Both rings of a queue; whether they are memory that C can reach."""
        cdef CompletionState cq = sq.cq
        entries[0] = self._windows.at(sq.address, sq.size * ENTRY_SIZE)
        words[0] = <uint64_t *>self._windows.at(cq.address, cq.size * COMPLETION_SIZE)
        return entries[0] != NULL and words[0] != NULL

    cdef int64_t _move(self, const Entry *entry, const char *following) except -1:
        """Move the data of a plain read or write, or add its segments where the bus does that; how
        many bytes, 0 where Python has to look at the command. `following` will probably be read
        next."""
        cdef const Space *space
        cdef uint64_t count, length
        cdef char *blocks
        if (
            (entry.opcode != READ and entry.opcode != WRITE)
            or entry.flags
            or entry.dw12 > 0xFFFF
            or entry.nsid > NAMESPACES
        ):
            return 0
        space = &self._spaces[entry.nsid]
        if space.data == NULL:
            return 0
        count = entry.dw12 + 1
        length = count << space.shift
        if (
            length > self._max_transfer
            or entry.slba >= space.blocks
            or count > space.blocks - entry.slba
        ):
            return 0
        blocks = space.data + (entry.slba << space.shift)
        self._place = blocks
        self._direction = TO_BUS if entry.opcode == READ else 0
        if not self._locate(entry.prp1, entry.prp2, length):
            return 0
        if self._moving:
            return length
        if entry.opcode == READ:
            scatter(self._pieces, self._piece_count, blocks, following)
        else:
            gather(blocks, self._pieces, self._piece_count)
        self._tally(entry.opcode == READ, length)
        return length

    cdef inline const char *_blocks(self, const Entry *entry) noexcept:
        """Where the blocks of the next read are, as far as that can be told; NULL where not."""
        cdef const Space *space
        cdef uint32_t nsid = entry.nsid
        cdef uint64_t slba = entry.slba
        if entry.opcode != READ or nsid > NAMESPACES:
            return NULL
        space = &self._spaces[nsid]
        if space.data == NULL or slba >= space.blocks:
            return NULL
        return space.data + (slba << space.shift)

    cdef bint _locate(self, uint64_t prp1, uint64_t prp2, uint64_t length) except -1:
        """Find a data buffer, as `HostMemory.segments` does; False where it is not plain."""
        cdef uint64_t size = self._page_size, mask = size - 1
        cdef uint64_t part = size - (prp1 & mask)
        cdef uint64_t count, here, at, entry
        cdef const char *entries
        cdef bint chained
        self._piece_count = 0
        if prp1 & 3:
            return False
        if length <= part:
            return self._add(prp1, length)
        if not self._add(prp1, part):
            return False
        length -= part
        if length <= size:
            return not prp2 & mask and self._add(prp2, length)
        if prp2 & (PRP_SIZE - 1):
            return False
        count = (length + mask) // size
        while True:
            here = (size - (prp2 & mask)) // PRP_SIZE
            chained = count > here
            if not chained:
                here = count
            entries = self._windows.at(prp2, here * PRP_SIZE)
            if entries == NULL:
                return False
            for at in range(here):
                entry = ring_load64(entries + at * PRP_SIZE)
                if entry & mask:
                    return False
                if chained and at == here - 1:
                    prp2 = entry
                else:
                    part = length if length < size else size
                    if not self._add(entry, part):
                        return False
                    length -= part
                    count -= 1
            if not chained:
                return True

    cdef inline bint _add(self, uint64_t address, uint64_t length) except -1:
        """Add a piece to the data buffer; whether it is memory that C can reach."""
        if self._moving:
            self._add_segment(address, length)
            return True
        cdef char *data = self._windows.at(address, length)
        cdef Piece *last = self._pieces + self._piece_count - 1
        if data == NULL:
            return False
        if self._piece_count and last.data + last.size == data:
            last.size += length
        else:
            last[1].data = data
            last[1].size = length
            self._piece_count += 1
        return True

    cdef inline void _add_segment(self, uint64_t address, uint64_t length) noexcept:
        cdef Segment *last = self._segments + self._segment_count - 1
        if (
            self._segment_count > self._segment_first
            and last.address + last.length == address
        ):
            last.length += <uint32_t>length
        else:
            last[1] = Segment(
                address, <uintptr_t>self._place, <uint32_t>length, self._direction
            )
            self._segment_count += 1
        self._place += length

    cdef int _count(self) except -1:
        """Tell the health log what was done."""
        health = self._health
        if self._reads:
            health.reads += self._reads
            health.units_read += self._bytes_read // UNIT
        if self._writes:
            health.writes += self._writes
            health.units_written += self._bytes_written // UNIT
        if self._busy:
            health.busy += self._busy / 1e9
        self._reads = self._writes = self._bytes_read = self._bytes_written = self._busy = 0
        return 0


class CompiledEngine(Core, Engine):
    """`Engine`, compiled; see there."""

    submission_queue = CompiledSubmissionQueue
    completion_queue = CompiledCompletionQueue
    moves = True

    def __init__(self, memory, namespaces, health, executor, *, max_transfer):
        Engine.__init__(self, memory, namespaces, health, executor, max_transfer=max_transfer)
        self.set_up(memory.dma, memory, namespaces, health, executor, max_transfer)
        namespaces.changed = self.namespaces_changed
        self.namespaces_changed()
