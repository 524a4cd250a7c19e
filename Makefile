# Every target sets up what it needs first; see tools/setup.
BIN := .venv/bin

# Not the documentation: its excerpts are laid out for reading.
PYTHON := setup.py src tests examples benchmarks

# A package with an __all__ does not show its modules by itself.
DOCUMENTED := softcard $(addprefix softcard., \
	backend bus cards errors guest model pcie testing)

# Debian's, by their series, from the oldest to the newest for which the module is made.
HOST_KERNELS := 6.1 6.12 7.2
comma := ,
space := $() $()

.PHONY: help setup demo test test-host-all test-host-long lint lint-kernel unit uml host qemu bench wheel docs clean

help:
	@echo "make demo     set everything up, then watch an NVMe card at work"
	@echo "make test     set everything up, then lint, check types and run all tests"
	@echo "make lint     ruff and mypy alone"
	@echo "make unit     the unit tests alone; no kernel"
	@echo "make uml      the tests with the embedded Linux alone"
	@echo "make qemu     the tests with a stock Linux in QEMU alone"
	@echo "make host     the tests of the kernel module alone, in a stock Linux"
	@echo "make test-host-all  the same in all of its kernels, one of them built to find faults"
	@echo "make test-host-long the hardest of them at full length: hours"
	@echo "make lint-kernel    the kernel's own checks of the module's source"
	@echo "make bench    measure"
	@echo "make docs     write docs/reference from the docstrings"
	@echo "make wheel    a wheel that carries the kernel, in dist/"
	@echo "make clean    remove what the others made, but not .venv and the kernel"

setup:
	@tools/setup

demo:
	@tools/setup packages venv kernel
	@$(BIN)/softcard demo

test: setup
	$(MAKE) --no-print-directory lint
	$(BIN)/pytest tests/unit tests/uml tests/vfio_user tests/host examples

lint:
	@tools/setup packages venv
	$(BIN)/ruff check $(PYTHON)
	$(BIN)/ruff format --check $(PYTHON)
	$(BIN)/mypy

unit:
	@tools/setup packages venv
	$(BIN)/pytest tests/unit

uml:
	@tools/setup packages venv kernel
	$(BIN)/pytest tests/uml examples

qemu:
	@tools/setup packages venv qemu
	$(BIN)/pytest tests/vfio_user

host: setup
	$(BIN)/pytest tests/host
	$(MAKE) --no-print-directory lint-kernel

test-host-all: setup
	$(BIN)/python -m tests.host.debug_kernel
	$(BIN)/pytest tests/host --host-kernels $(subst $(space),$(comma),$(HOST_KERNELS) debug)
	$(BIN)/python -m tests.host.lint $(HOST_KERNELS)

test-host-long: setup
	$(BIN)/python -m tests.host.debug_kernel
	$(BIN)/pytest tests/host/test_hostile.py tests/host/test_interrupts.py \
		tests/host/test_host_soak.py tests/host/test_cards.py --host-long --host-kernels 6.12,debug

lint-kernel: setup
	$(BIN)/python -m tests.host.lint 6.12

bench: setup
	$(BIN)/python -m benchmarks

wheel: setup
	SOFTCARD_WHEEL_KERNEL="$$($(BIN)/softcard kernel status --folder)" \
		$(BIN)/python -m build --wheel

docs:
	@tools/setup packages venv
	$(BIN)/pdoc --docformat google --output-directory docs/reference $(DOCUMENTED)
	@echo "docs/reference/index.html"

clean:
	rm -rf build dist docs/reference .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +
