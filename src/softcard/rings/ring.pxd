# cython: language_level=3
"""Rings that a driver's processor writes and reads at the same time."""

from libc.stdint cimport uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #include <time.h>

    /* A doorbell or an index: what was stored before it is seen after it. */
    static inline uint32_t ring_load32(const void *word)
    {
        return __atomic_load_n((const uint32_t *)word, __ATOMIC_ACQUIRE);
    }

    static inline uint64_t ring_load64(const void *word)
    {
        return __atomic_load_n((const uint64_t *)word, __ATOMIC_RELAXED);
    }

    /* The last word of an entry: who sees it, sees what was stored before. */
    static inline void ring_publish64(void *word, uint64_t value)
    {
        __atomic_store_n((uint64_t *)word, value, __ATOMIC_RELEASE);
    }

    /* A copy of an entry, which the driver can no longer change while it is looked at. */
    static inline void ring_fetch(void *entry, const void *from, size_t size)
    {
        memcpy(entry, from, size);
        __asm__ volatile("" : : "r"(entry) : "memory");
    }

    /*
     * memcpy, while memory that will be copied next is on its way from DRAM: line by line, since a
     * processor can wait for a dozen lines at once, and not for a page.
     */
    static inline void ring_copy(char *to, const char *from, size_t size, const char *next)
    {
        size_t at = 0;

        if (next) {
            for (; at + 64 <= size; at += 64) {
                __builtin_prefetch(next + at);
                memcpy(to + at, from + at, 64);
            }
        }
        memcpy(to + at, from + at, size - at);
    }

    static inline void ring_pause(void)
    {
    #if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
    #endif
    }

    static inline uint64_t ring_nanoseconds(void)
    {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec * UINT64_C(1000000000) + now.tv_nsec;
    }
    """
    uint32_t ring_load32(const void *word) nogil
    uint64_t ring_load64(const void *word) nogil
    void ring_publish64(void *word, uint64_t value) nogil
    void ring_fetch(void *entry, const void *source, size_t size) nogil
    void ring_copy(char *to, const char *source, size_t size, const char *next) nogil
    void ring_pause() nogil
    uint64_t ring_nanoseconds() nogil
