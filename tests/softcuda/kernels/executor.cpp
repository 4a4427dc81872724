// Runs a kernel's blocks one after the other, and the threads of a block as fibers that change at barriers.
//
// nvcc.py compiles the kernel with -fsanitize=thread; hooks.h defines what that calls (__tsan_read4, ...) in
// place of libtsan, and so sees every load and store. This file is part of every emulated module; nothing of it
// is visible outside but the two functions of runtime.h.
#include "hooks.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

extern "C" void* softcuda_static_shared(const char* name, size_t size, size_t alignment) {
  size_t offset = (static_end != 0 ? static_end : kDynamicBytes) + kRedZone;
  offset = (offset + alignment - 1) / alignment * alignment;
  if (static_array_count == 64 || offset + size + kRedZone > kSharedBytes) {
    fprintf(stderr, "softcuda: too much static shared memory for %s\n", name);
    abort();
  }
  static_arrays[static_array_count++] = {name, offset, size};
  static_end = offset + size;
  allow(offset, size);
  return softcuda_dynamic_shared + offset;
}

extern "C" int softcuda_barrier(int site, int line, int kind, int predicate) {
  Fiber* fiber = current;
  fiber->waiting = true;
  fiber->site = site;
  fiber->line = line;
  fiber->kind = kind;
  fiber->predicate = predicate;
  change(&fiber->context, &scheduler);
  return barrier_result;
}

namespace {

constexpr uint64_t kCanary = 0x5afe57acc0ffee11ull;  // at the end of a stack

void start(Fiber* fiber) {
  fiber->stack = free_stacks[--free_stack_count];
  *reinterpret_cast<uint64_t*>(fiber->stack) = kCanary;
  prepare(&fiber->context, fiber->stack, fiber_main);
}

void release(Fiber* fiber) {
  if (*reinterpret_cast<uint64_t*>(fiber->stack) != kCanary) {
    subject = fiber;
    access_pc = nullptr;
    report("stack", "a thread used more than %zu bytes of local memory", kStackBytes);
    subject = nullptr;
    launch.result = 719;
  }
  free_stacks[free_stack_count++] = fiber->stack;
  fiber->stack = nullptr;
}

// Lets every thread that can run do so until it waits or returns. Returns how many wait.
unsigned run_phase(const uint16_t* order, bool first) {
  unsigned waiting = 0;
  for (unsigned i = 0; i < launch.threads && launch.result == 0; ++i) {
    Fiber* fiber = &fibers[order[i]];
    if (first)
      start(fiber);
    else if (!fiber->waiting)
      continue;
    fiber->waiting = false;
    resume(fiber);
    if (fiber->waiting)
      ++waiting;
    else
      release(fiber);
  }
  return waiting;
}

// Checks that all threads of the block wait at one barrier, and works out what it returns.
void meet(unsigned waiting) {
  const Fiber* one = nullptr;
  int any = 0, count = 0;
  for (unsigned i = 0; i < launch.threads; ++i) {
    const Fiber& fiber = fibers[i];
    if (!fiber.waiting) continue;
    if (one == nullptr) one = &fiber;
    any |= fiber.predicate;
    count += fiber.predicate;
    if (fiber.site == one->site) continue;
    subject = &fiber;
    access_pc = nullptr;
    report("barrier", "this thread waits at the barrier in line %d, others at the one in line %d", fiber.line,
           one->line);
    subject = nullptr;
    launch.result = 719;
    return;
  }
  if (waiting != launch.threads) {
    subject = one;
    access_pc = nullptr;
    if (first_time("barrier", reinterpret_cast<const void*>(static_cast<intptr_t>(one->line))))
      report("barrier", "%u of %u threads wait at the barrier in line %d, the others have returned", waiting,
             launch.threads, one->line);
    subject = nullptr;
  }
  barrier_result = one->kind == SOFTCUDA_BARRIER_COUNT ? count
                   : one->kind == SOFTCUDA_BARRIER_AND ? count == static_cast<int>(waiting)
                                                       : any;
}

uint64_t random_state;
unsigned random_below(unsigned bound) {  // xorshift64*
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return static_cast<unsigned>(((random_state * 0x2545f4914f6cdd1dull) >> 32) * bound >> 32);
}

void shuffle(uint16_t* order) {
  for (unsigned i = launch.threads; i > 1; --i) {
    const unsigned j = random_below(i);
    const uint16_t swap = order[i - 1];
    order[i - 1] = order[j];
    order[j] = swap;
  }
}

void begin_block_of_tags() {
  if ((epoch_tag >> kThreadBits) > kLastEpoch) {  // the numbers run out: begin anew
    forget_shared_tags();
    forget_global_tags();
    epoch_tag = 1 << kThreadBits;
    launch_tag = epoch_tag;
  }
  next_epoch();
  block_tag = epoch_tag;
}

void run_block(uint16_t* order) {
  if (random_state != 0) shuffle(order);
  ++block_number;
  begin_block_of_shared();
  begin_block_of_tags();
  unsigned waiting = run_phase(order, true);
  while (waiting > 0 && launch.result == 0) {
    meet(waiting);
    ++launch.counters->barriers;
    next_epoch();
    if (launch.result == 0) waiting = run_phase(order, false);
  }
  ++launch.counters->blocks;
}

constexpr size_t kSpareStacks = 16;  // room in front of the first one, for a kernel that uses too much

void prepare_memory() {
  if (stacks != nullptr) return;
  void* memory = mmap(nullptr, (kMaxThreads + kSpareStacks) * kStackStride, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) abort();
  stacks = static_cast<unsigned char*>(memory) + kSpareStacks * kStackStride;
  for (size_t i = 0; i < kSharedBytes; ++i) writers[i] = readers[i] = kForbidden;
}

__attribute__((destructor)) void release_memory() {
  if (stacks != nullptr) munmap(stacks - kSpareStacks * kStackStride, (kMaxThreads + kSpareStacks) * kStackStride);
  stacks = nullptr;
  release_global();
}

const SoftcudaEntry* find(const char* name) {
  for (const SoftcudaEntry* entry = softcuda_entries; entry->name != nullptr; ++entry)
    if (strcmp(entry->name, name) == 0) return entry;
  return nullptr;
}

// A CUresult for what no GPU would launch.
int refuse(const SoftcudaEntry* entry, const unsigned grid[3], const unsigned block[3], unsigned shared_bytes) {
  if (entry == nullptr) return 500;
  const uint64_t threads = uint64_t{block[0]} * block[1] * block[2];
  if (threads == 0 || uint64_t{grid[0]} * grid[1] * grid[2] == 0 || threads > kMaxThreads) return 1;
  if (threads > entry->max_threads) return 701;
  if (shared_bytes > kDynamicBytes) return 1;
  return 0;
}

}  // namespace

EXPORT int softcuda_describe(const char* name, SoftcudaKernel* out) {
  const SoftcudaEntry* entry = find(name);
  if (entry == nullptr) return 0;
  *out = {entry->parameter_bytes, 0, entry->max_threads};  // the size of static arrays is known when they are used
  return 1;
}

namespace {

void begin_launch(const SoftcudaEntry* entry, const unsigned block[3], unsigned shared_bytes,
                  const void* parameters, SoftcudaRuntime* runtime) {
  const unsigned checks = runtime != nullptr ? runtime->checks : SOFTCUDA_CHECK_SHARED;
  SoftcudaCounters* counters = runtime != nullptr ? runtime->counters : nullptr;
  launch = {entry, parameters, runtime, counters != nullptr ? counters : &no_counters,
            block[0] * block[1] * block[2], shared_bytes,
            runtime != nullptr && (checks & SOFTCUDA_CHECK_GLOBAL) != 0, (checks & SOFTCUDA_CHECK_SHARED) != 0, 0};
  if (runtime != nullptr) runtime->where = where;
  ++launch_number;
  random_state = runtime != nullptr ? runtime->seed : 0;
  prepare_memory();
  set_dynamic_limit();
  begin_launch_of_global();
  next_epoch();
  launch_tag = epoch_tag;
  free_stack_count = 0;
  for (unsigned i = kMaxThreads; i-- > 0;) free_stacks[free_stack_count++] = stacks + i * kStackStride;
}

void run_blocks() {
  uint16_t order[kMaxThreads];
  for (unsigned i = 0; i < launch.threads; ++i) {
    fibers[i].thread = i;
    fibers[i].waiting = false;
    order[i] = static_cast<uint16_t>(i);
  }
  const uint64_t blocks = uint64_t{gridDim.x} * gridDim.y * gridDim.z;
  const uint64_t first = random_state != 0 ? random_below(static_cast<unsigned>(blocks & 0x7fffffff)) : 0;
  for (uint64_t b = 0; b < blocks && launch.result == 0; ++b) {
    const uint64_t index = (b + first) % blocks;
    blockIdx = {static_cast<unsigned>(index % gridDim.x), static_cast<unsigned>(index / gridDim.x % gridDim.y),
                static_cast<unsigned>(index / (uint64_t{gridDim.x} * gridDim.y))};
    run_block(order);
    launch.counters->threads += launch.threads;
  }
}

}  // namespace

EXPORT int softcuda_launch(const char* name, const unsigned grid[3], const unsigned block[3],
                           unsigned shared_bytes, const void* parameters, SoftcudaRuntime* runtime) {
  const SoftcudaEntry* entry = find(name);
  if (const int refused = refuse(entry, grid, block, shared_bytes)) return refused;
  if (runtime != nullptr && runtime->abi != SOFTCUDA_ABI) return 209;  // no binary for this device
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {block[0], block[1], block[2]};
  begin_launch(entry, block, shared_bytes, parameters, runtime);
  run_blocks();
  if (runtime != nullptr) runtime->where = nullptr;
  return launch.result;
}
