// The functions that g++'s -fsanitize=thread and -fsanitize=undefined call from the kernel's code.
#ifndef SOFTCUDA_HOOKS_H
#define SOFTCUDA_HOOKS_H

#include "global_memory.h"
#include "shared_memory.h"

namespace {

template <unsigned N, int Access>
__attribute__((always_inline)) inline void on_access(const void* pointer, const void* pc) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  const size_t offset = address - reinterpret_cast<uintptr_t>(softcuda_dynamic_shared);
  if (offset < kSharedBytes) {
    if (Access == SOFTCUDA_READ)
      ++launch.counters->shared_loads;
    else
      ++launch.counters->shared_stores;
    access_pc = pc;
    if (launch.check_shared) shared_access<N, Access>(offset);
    return;
  }
  if (address - reinterpret_cast<uintptr_t>(stacks) < kMaxThreads * kStackStride) return;  // a local variable
  if (address - reinterpret_cast<uintptr_t>(__ehdr_start) < static_cast<size_t>(_end - __ehdr_start)) return;
  access_pc = pc;
  global_access<Access>(address, N);
}

template <int Access>
void on_range(const void* pointer, size_t size, const void* pc) {
  const char* p = static_cast<const char*>(pointer);
  for (; size >= 4; size -= 4, p += 4) on_access<4, Access>(p, pc);
  for (; size > 0; --size, ++p) on_access<1, Access>(p, pc);
}

}  // namespace

#define HOOK(N)                                                                                               \
  extern "C" void __tsan_read##N(void* p) { on_access<N, SOFTCUDA_READ>(p, __builtin_return_address(0)); }    \
  extern "C" void __tsan_write##N(void* p) { on_access<N, SOFTCUDA_WRITE>(p, __builtin_return_address(0)); }
#define UNALIGNED_HOOK(N)                                                                                     \
  extern "C" void __tsan_unaligned_read##N(void* p) {                                                         \
    on_range<SOFTCUDA_READ>(p, N, __builtin_return_address(0));                                               \
  }                                                                                                           \
  extern "C" void __tsan_unaligned_write##N(void* p) {                                                        \
    on_range<SOFTCUDA_WRITE>(p, N, __builtin_return_address(0));                                              \
  }
HOOK(1) HOOK(2) HOOK(4) HOOK(8) HOOK(16)
UNALIGNED_HOOK(2) UNALIGNED_HOOK(4) UNALIGNED_HOOK(8) UNALIGNED_HOOK(16)
extern "C" void __tsan_read_range(void* p, size_t size) {
  on_range<SOFTCUDA_READ>(p, size, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* p, size_t size) {
  on_range<SOFTCUDA_WRITE>(p, size, __builtin_return_address(0));
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
// Only gcov's counters of lines are atomics to g++: the kernel's own go through softcuda_atomic.
extern "C" int64_t __tsan_atomic64_fetch_add(volatile int64_t* counter, int64_t value, int) {
  const int64_t old = *counter;
  *counter = old + value;
  return old;
}

extern "C" void softcuda_atomic(const void* address, size_t size) {
  if (size == 4)
    on_access<4, SOFTCUDA_ATOMIC>(address, __builtin_return_address(0));
  else
    on_access<8, SOFTCUDA_ATOMIC>(address, __builtin_return_address(0));
}

// ---- undefined behaviour ----
// All of its records begin with the place in the source.
namespace {
struct Place { const char* file; unsigned line, column; };
void undefined(const char* kind, const void* data, const char* text) {
  const Place& place = *static_cast<const Place*>(data);
  const char* name = strrchr(place.file, '/');
  access_pc = nullptr;
  if (first_time(kind, data))
    report(kind, "%s at %s:%u:%u", text, name != nullptr ? name + 1 : place.file, place.line, place.column);
}
}  // namespace
#define UNDEFINED(name, kind, text, ...) \
  extern "C" void __ubsan_handle_##name(void* data, ##__VA_ARGS__) { undefined(kind, data, text); }
UNDEFINED(add_overflow, "overflow", "signed addition overflows", void*, void*)
UNDEFINED(sub_overflow, "overflow", "signed subtraction overflows", void*, void*)
UNDEFINED(mul_overflow, "overflow", "signed multiplication overflows", void*, void*)
UNDEFINED(negate_overflow, "overflow", "signed negation overflows", void*)
UNDEFINED(divrem_overflow, "overflow", "division by zero or overflow", void*, void*)
UNDEFINED(shift_out_of_bounds, "overflow", "shift by a wrong number of bits", void*, void*)
UNDEFINED(pointer_overflow, "overflow", "pointer arithmetic wraps around", void*, void*)
UNDEFINED(float_cast_overflow, "overflow", "the integer cannot hold the floating-point value (NaN, or too large)",
          void*)
extern "C" void __ubsan_handle_out_of_bounds(void* data, void*) {
  undefined("bounds", data, "index beyond the array's dimension");
  abandon(700);
}
extern "C" void __ubsan_handle_type_mismatch_v1(void* data, void*) {
  undefined("misaligned", data, "address not aligned for its type");
  abandon(716);
}

#endif
