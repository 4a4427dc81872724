// What the emulated driver (libcuda stand-in) and an emulated module (a .cu file compiled for the CPU) say to
// each other. Plain C, included by both; a change of layout needs a new SOFTCUDA_ABI.
//
// Device memory is host memory in one arena that is mapped from start to end. Every byte of it has a byte of
// state; a kernel's loads and stores are checked against that state, and against the operations of other
// streams that nothing orders before or after this one.
#ifndef SOFTCUDA_RUNTIME_H
#define SOFTCUDA_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#define SOFTCUDA_ABI 1

// Bits of the state of one byte of the arena. Anything but ALLOCATED|INITIALISED needs a closer look.
#define SOFTCUDA_ALLOCATED 1u    // part of a live allocation; without it: red zone, never allocated or freed
#define SOFTCUDA_INITIALISED 2u  // somebody wrote it since it was allocated
#define SOFTCUDA_FREED 4u        // was allocated once

enum SoftcudaAccess { SOFTCUDA_READ = 0, SOFTCUDA_WRITE = 1, SOFTCUDA_ATOMIC = 2 };

// Verdict of a check. The driver has reported the fault already when it is not OK.
enum SoftcudaVerdict {
  SOFTCUDA_OK = 0,
  SOFTCUDA_WRONG = 1,    // a fault, but the address is mapped: the kernel may go on
  SOFTCUDA_UNMAPPED = 2  // touching it would crash: abandon the launch, return 700 from softcuda_launch
};

// Bits of SoftcudaRuntime.checks: what the emulation looks at.
#define SOFTCUDA_CHECK_GLOBAL 1u  // bounds, use after free, uninitialised reads, races between streams
#define SOFTCUDA_CHECK_SHARED 2u  // shared memory: bounds, uninitialised reads, races between threads

// Of one kernel, summed over its launches. The driver counts launches, the module the rest.
typedef struct SoftcudaCounters {
  uint64_t launches, blocks, threads, barriers;
  uint64_t loads, load_bytes, stores, store_bytes, atomics;  // global memory, as executed
  uint64_t load_sectors, store_sectors;                      // distinct 32-byte sectors, per block
  uint64_t shared_loads, shared_stores;
} SoftcudaCounters;

typedef struct SoftcudaRuntime {
  uint32_t abi;
  uint32_t checks;
  uint64_t seed;  // of the order of threads within a block; 0: ascending
  uintptr_t arena_base;
  size_t arena_size;
  uint8_t* state;     // one byte for each of the arena
  uint32_t* writers;  // for each byte, the operation that wrote it last, 0 for none
  uint32_t* readers;  // and the one that read it last
  uint32_t operation;  // the one that runs now
  SoftcudaCounters* counters;  // of the kernel that runs now
  // The module may set it: position of the thread that runs now, "block (3,0,0), thread (7,0,0)"; for reports.
  const char* (*where)(void);
  // One of SoftcudaVerdict, for an access to `size` bytes of global memory; marks written bytes initialised.
  int (*check)(struct SoftcudaRuntime*, uintptr_t address, size_t size, int access);
  // A fault that the module found itself: kind is one word ("shared-race", "barrier", ...), text one line.
  void (*report)(struct SoftcudaRuntime*, const char* kind, const char* text);
} SoftcudaRuntime;

// What a module says about one of its kernels.
typedef struct SoftcudaKernel {
  uint32_t parameter_bytes;  // size of the packed parameter buffer
  uint32_t shared_bytes;     // static shared memory
  uint32_t max_threads;      // of __launch_bounds__, or 1024
} SoftcudaKernel;

#ifdef __cplusplus
extern "C" {
#endif
// Every emulated module exports these two.
// Fills `out` and returns 1; returns 0 when the module has no kernel of that name.
int softcuda_describe(const char* name, SoftcudaKernel* out);
// Runs all blocks and returns a CUresult: 0, or for instance 700 (illegal address) or 719 (launch failure),
// which the driver then keeps for every later call as a GPU does. The driver calls it when the launch is
// executed, one at a time, from any thread.
int softcuda_launch(const char* name, const unsigned grid[3], const unsigned block[3], unsigned shared_bytes,
                    const void* parameters, SoftcudaRuntime* runtime);
#ifdef __cplusplus
}
#endif

// One access of a thread to global memory, of 1, 2, 4, 8 or 16 bytes (other sizes work, slowly). The common
// case is decided here: all bytes allocated and initialised, and seen by this operation before.
static inline int softcuda_check_global(SoftcudaRuntime* runtime, uintptr_t address, size_t size, int access) {
  const size_t offset = address - runtime->arena_base;
  const uint32_t* seen = access == SOFTCUDA_READ ? runtime->readers : runtime->writers;
  const uint32_t operation = runtime->operation;
  if (offset < runtime->arena_size && size <= 16 && seen[offset] == operation &&
      seen[offset + size - 1] == operation) {
    const uint8_t* state = runtime->state + offset;
    size_t i = 0;
    while (i < size && state[i] == (SOFTCUDA_ALLOCATED | SOFTCUDA_INITIALISED)) ++i;
    if (i == size) return SOFTCUDA_OK;
  }
  return runtime->check(runtime, address, size, access);
}

#endif
