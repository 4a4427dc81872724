// Checks and counts of global memory: what the driver knows about each byte, races within the launch, traffic.
#ifndef SOFTCUDA_GLOBAL_MEMORY_H
#define SOFTCUDA_GLOBAL_MEMORY_H

#include <sys/mman.h>

#include "tags.h"

namespace {

// Who wrote each byte of the driver's arena last. Only pages that kernels write become real.
Tag* global_writers;
size_t global_bytes;

// Distinct 32-byte sectors that the block touched: an open hash table whose entries carry the block's number,
// so that it needs no clearing. Where four neighbours are taken, a sector may be counted again.
struct Sectors {
  static constexpr unsigned kSlots = 1u << 15;
  uint64_t slot[kSlots];
  uint64_t last;
  bool add(uintptr_t sector, uint64_t block) {
    const uint64_t key = (static_cast<uint64_t>(sector) << 20) | (block & 0xfffff);
    if (key == last) return false;
    last = key;
    for (unsigned i = 0; i < 4; ++i) {
      uint64_t& entry = slot[(sector + i) % kSlots];
      if (entry == key) return false;
      if (((entry ^ key) & 0xfffff) != 0 || i == 3) {
        entry = key;
        return true;
      }
    }
    return true;
  }
} load_sectors, store_sectors;
uint64_t block_number;

SoftcudaRuntime asked;  // a copy of the driver's for its quick check; the long one goes to the scheduler's stack

struct Question { uintptr_t address; size_t size; int access, verdict; };

int ask_driver(SoftcudaRuntime*, uintptr_t address, size_t size, int access) {
  Question question = {address, size, access, SOFTCUDA_OK};
  on_scheduler(
      [](void* data) {
        Question& q = *static_cast<Question*>(data);
        q.verdict = launch.runtime->check(launch.runtime, q.address, q.size, q.access);
      },
      &question);
  return question.verdict;
}

void release_global() {
  if (global_writers != nullptr) munmap(global_writers, global_bytes * sizeof(Tag));
  global_writers = nullptr;
  global_bytes = 0;
}

void forget_global_tags() {
  if (global_writers != nullptr) madvise(global_writers, global_bytes * sizeof(Tag), MADV_DONTNEED);  // zeros
}

void begin_launch_of_global() {
  if (!launch.check_global) return;
  asked = *launch.runtime;
  asked.check = ask_driver;
  if (global_bytes >= asked.arena_size) return;
  release_global();
  const size_t bytes = asked.arena_size * sizeof(Tag);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return;
  madvise(memory, bytes, MADV_NOHUGEPAGE);  // a written byte shall cost one small page
  global_writers = static_cast<Tag*>(memory);
  global_bytes = asked.arena_size;
}

// Nothing orders the threads of a launch but the barriers within a block: what another block wrote, or another
// thread since the last barrier, may not be there yet on a GPU. Reads that a write overtakes are not looked for.
template <int Access>
inline void global_race(uintptr_t address, size_t size) {
  const size_t offset = address - asked.arena_base;
  if (offset >= global_bytes || size > global_bytes - offset) return;
  const Tag me = epoch_tag | (Access == SOFTCUDA_ATOMIC ? kAtomic : static_cast<Tag>(current->thread));
  for (size_t i = offset; i < offset + size; ++i) {
    const Tag w = global_writers[i];
    const bool atomics = Access == SOFTCUDA_ATOMIC && (w & kThreadMask) == kAtomic;
    if (__builtin_expect(w >= launch_tag && (w < block_tag || w >= epoch_tag) && w != me && !atomics, 0)) {
      char name[64];
      if (first_time("global-race", access_pc))
        report("global-race", "%s of global memory that %s of the same launch wrote, with no barrier between",
               kVerbs[Access], w < block_tag ? "another block" : thread_name(w, name, sizeof name));
      return;
    }
    if (Access != SOFTCUDA_READ) global_writers[i] = me;
  }
}

template <int Access>
inline void global_access(uintptr_t address, size_t size) {
  SoftcudaCounters& counters = *launch.counters;
  if (Access != SOFTCUDA_WRITE) {
    ++counters.loads;
    counters.load_bytes += size;
    counters.load_sectors += load_sectors.add(address >> 5, block_number);
  }
  if (Access != SOFTCUDA_READ) {
    ++counters.stores;
    counters.store_bytes += size;
    counters.store_sectors += store_sectors.add(address >> 5, block_number);
  }
  if (Access == SOFTCUDA_ATOMIC) ++counters.atomics;
  if (!launch.check_global) return;
  if (softcuda_check_global(&asked, address, size, Access) == SOFTCUDA_UNMAPPED) abandon(700);
  global_race<Access>(address, size);
}

}  // namespace

#endif
