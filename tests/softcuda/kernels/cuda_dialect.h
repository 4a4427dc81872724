// The part of CUDA C++ that hfd-edge's kernels use, in the words of g++. nvcc.py puts it before an unmodified
// .cu file, preprocesses both, and compiles the result as host code; executor.cpp runs it.
//
// What a GPU does differently and this file does not imitate: contraction of a*b+c to an FMA (only explicit
// fmaf is one here), the last bit of log10f, expf and kin (libm's here), warps.
#ifndef SOFTCUDA_DIALECT_H
#define SOFTCUDA_DIALECT_H

#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

// nvcc.py replaces these markers after preprocessing: an array in shared memory becomes a reference into the
// executor's arena, `extern __shared__ T name[]` a pointer to the arena's dynamic part.
#define __global__ softcuda_global_marker
#define __shared__ softcuda_shared_marker
#define __launch_bounds__ softcuda_bounds_marker
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define SOFTCUDA_PLAIN __attribute__((no_sanitize("thread", "undefined")))

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Vector types are as aligned as on the device, so that -fsanitize=alignment finds what a GPU would refuse.
#define SOFTCUDA_VECTORS(T, name, align2, align4)                                                      \
  struct alignas(align2) name##2 { T x, y; };                                                          \
  struct name##3 { T x, y, z; };                                                                       \
  struct alignas(align4) name##4 { T x, y, z, w; };                                                    \
  static inline name##2 make_##name##2(T x, T y) { return name##2{x, y}; }                             \
  static inline name##3 make_##name##3(T x, T y, T z) { return name##3{x, y, z}; }                     \
  static inline name##4 make_##name##4(T x, T y, T z, T w) { return name##4{x, y, z, w}; }
SOFTCUDA_VECTORS(signed char, char, 2, 4)
SOFTCUDA_VECTORS(unsigned char, uchar, 2, 4)
SOFTCUDA_VECTORS(short, short, 4, 8)
SOFTCUDA_VECTORS(unsigned short, ushort, 4, 8)
SOFTCUDA_VECTORS(int, int, 8, 16)
SOFTCUDA_VECTORS(unsigned, uint, 8, 16)
SOFTCUDA_VECTORS(float, float, 8, 16)
struct alignas(16) double2 { double x, y; };
struct alignas(16) longlong2 { long long x, y; };
struct alignas(16) ulonglong2 { unsigned long long x, y; };
static inline double2 make_double2(double x, double y) { return double2{x, y}; }

// The executor sets these before it lets a thread run. Const to the kernel: a thread never sees them change.
#ifndef SOFTCUDA_EXECUTOR
#define SOFTCUDA_CONST const
#else
#define SOFTCUDA_CONST
#endif
extern "C" {
#pragma GCC visibility push(hidden)
extern SOFTCUDA_CONST uint3 threadIdx, blockIdx, blockDim, gridDim;
extern unsigned char softcuda_dynamic_shared[];
// Room for one static array in shared memory; asked for once, when a thread first comes by its declaration.
void* softcuda_static_shared(const char* name, size_t size, size_t alignment);
// Waits until every thread of the block is here; returns the or, and, or count of the predicates.
enum { SOFTCUDA_BARRIER, SOFTCUDA_BARRIER_OR, SOFTCUDA_BARRIER_AND, SOFTCUDA_BARRIER_COUNT };
int softcuda_barrier(int site, int line, int kind, int predicate);
// Tells the executor of an atomic access before it happens.
void softcuda_atomic(const void* address, size_t size);
#pragma GCC visibility pop
}
const int warpSize = 32;

// The site names the barrier in the source: copies that the optimiser makes of it stay one barrier.
#define __syncthreads() ((void)softcuda_barrier(__COUNTER__, __LINE__, SOFTCUDA_BARRIER, 0))
#define __syncthreads_or(predicate) \
  softcuda_barrier(__COUNTER__, __LINE__, SOFTCUDA_BARRIER_OR, (predicate) != 0)
#define __syncthreads_and(predicate) \
  softcuda_barrier(__COUNTER__, __LINE__, SOFTCUDA_BARRIER_AND, (predicate) != 0)
#define __syncthreads_count(predicate) \
  softcuda_barrier(__COUNTER__, __LINE__, SOFTCUDA_BARRIER_COUNT, (predicate) != 0)
static inline void __threadfence() {}
static inline void __threadfence_block() {}

// Atomics: threads of this machine take turns, so a plain operation is atomic once it is announced.
#define SOFTCUDA_ATOMIC(name, T, expression)                         \
  SOFTCUDA_PLAIN static inline T name(T* address, T value) {         \
    softcuda_atomic(address, sizeof(T));                             \
    const T old = *address;                                          \
    *address = (expression);                                         \
    return old;                                                      \
  }
#define SOFTCUDA_ATOMIC_INTEGER(T)                                   \
  SOFTCUDA_ATOMIC(atomicMin, T, value < old ? value : old)           \
  SOFTCUDA_ATOMIC(atomicMax, T, value > old ? value : old)           \
  SOFTCUDA_ATOMIC(atomicOr, T, old | value)                          \
  SOFTCUDA_ATOMIC(atomicAnd, T, old & value)                         \
  SOFTCUDA_ATOMIC(atomicXor, T, old ^ value)                         \
  SOFTCUDA_PLAIN static inline T atomicCAS(T* address, T expected, T value) { \
    softcuda_atomic(address, sizeof(T));                             \
    const T old = *address;                                          \
    if (old == expected) *address = value;                           \
    return old;                                                      \
  }
SOFTCUDA_ATOMIC_INTEGER(int)
SOFTCUDA_ATOMIC_INTEGER(unsigned)
SOFTCUDA_ATOMIC_INTEGER(unsigned long long)
SOFTCUDA_ATOMIC(atomicAdd, int, static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value)))
SOFTCUDA_ATOMIC(atomicAdd, unsigned, old + value)
SOFTCUDA_ATOMIC(atomicAdd, unsigned long long, old + value)
SOFTCUDA_ATOMIC(atomicAdd, float, old + value)
SOFTCUDA_ATOMIC(atomicAdd, double, old + value)
SOFTCUDA_ATOMIC(atomicExch, int, value)
SOFTCUDA_ATOMIC(atomicExch, unsigned, value)
SOFTCUDA_ATOMIC(atomicExch, unsigned long long, value)
SOFTCUDA_ATOMIC(atomicExch, float, value)

// Bits of a number.
template <class To, class From>
static inline To softcuda_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
static inline unsigned __float_as_uint(float x) { return softcuda_bits<unsigned>(x); }
static inline int __float_as_int(float x) { return softcuda_bits<int>(x); }
static inline float __uint_as_float(unsigned x) { return softcuda_bits<float>(x); }
static inline float __int_as_float(int x) { return softcuda_bits<float>(x); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<unsigned long long>(a) * b) >> 32);
}

// Arithmetic. math.h has the rest under CUDA's names (sqrtf, fmaf, expf, exp10f, log10f, fminf, floorf, ...).
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __fdividef(float a, float b) { return a / b; }
#define __expf expf  // glibc has a function of that name
#define __logf logf
#define __log2f log2f
#define __log10f log10f
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
static inline int __float2int_rn(float x) { return static_cast<int>(rintf(x)); }
static inline int __float2int_rz(float x) { return static_cast<int>(x); }
static inline int __float2int_rd(float x) { return static_cast<int>(floorf(x)); }
static inline unsigned __float2uint_rn(float x) { return static_cast<unsigned>(rintf(x)); }
template <class T>
static inline T __ldg(const T* address) { return *address; }
#define SOFTCUDA_MIN_MAX(T)                                       \
  static inline T min(T a, T b) { return b < a ? b : a; }         \
  static inline T max(T a, T b) { return a < b ? b : a; }
SOFTCUDA_MIN_MAX(int)
SOFTCUDA_MIN_MAX(unsigned)
SOFTCUDA_MIN_MAX(long)
SOFTCUDA_MIN_MAX(unsigned long)
SOFTCUDA_MIN_MAX(long long)
SOFTCUDA_MIN_MAX(unsigned long long)
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }

// Entry points: `call` runs one thread of the kernel on the packed parameter buffer of the launch.
struct SoftcudaEntry {
  const char* name;
  void (*call)(const void* parameters);
  unsigned parameter_bytes, max_threads;
};
constexpr size_t softcuda_align(size_t offset, size_t alignment) {
  return (offset + alignment - 1) / alignment * alignment;
}
// Where each parameter lies: naturally aligned, one after the other, as cuLaunchKernel packs them.
template <class... Args>
struct SoftcudaParameters;
template <>
struct SoftcudaParameters<> {
  static constexpr size_t size(size_t offset) { return offset; }
  template <class Kernel, class... Done>
  SOFTCUDA_PLAIN static void call(Kernel kernel, const void*, size_t, Done... done) { kernel(done...); }
};
template <class First, class... Rest>
struct SoftcudaParameters<First, Rest...> {
  static constexpr size_t size(size_t offset) {
    return SoftcudaParameters<Rest...>::size(softcuda_align(offset, alignof(First)) + sizeof(First));
  }
  template <class Kernel, class... Done>
  SOFTCUDA_PLAIN static void call(Kernel kernel, const void* parameters, size_t offset, Done... done) {
    offset = softcuda_align(offset, alignof(First));
    First value;
    memcpy(&value, static_cast<const char*>(parameters) + offset, sizeof value);
    SoftcudaParameters<Rest...>::call(kernel, parameters, offset + sizeof value, done..., value);
  }
};
template <class... Args>
SOFTCUDA_PLAIN static inline void softcuda_unpack(void (*kernel)(Args...), const void* parameters) {
  SoftcudaParameters<Args...>::call(kernel, parameters, 0);
}
template <class... Args>
constexpr unsigned softcuda_size(void (*)(Args...)) {
  return static_cast<unsigned>(SoftcudaParameters<Args...>::size(0));
}
template <class Kernel, Kernel kernel>
SOFTCUDA_PLAIN static void softcuda_call(const void* parameters) { softcuda_unpack(kernel, parameters); }
constexpr unsigned softcuda_bound() { return 1024; }
template <class... More>
constexpr unsigned softcuda_bound(unsigned threads, More...) { return threads; }

struct softcuda_end_of_dialect;
#endif
