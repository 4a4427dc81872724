// Small kernels with a known result or a known fault, for test_kernels_emulation.py.
struct Args {
  const float* in;
  float* out;
  unsigned* count;
  int n;
  int which;
};

template <class T>
__device__ __forceinline__ T twice(T x) {
  return x + x;
}

// ---- right ----

template <class T>
__device__ void mirror(T* values, int i) {
  __shared__ T copy[64];
  copy[i] = values[i];
  __syncthreads();
  values[i] = copy[63 - i];
}

extern "C" __global__ void __launch_bounds__(64) reverse(const Args a) {
  extern __shared__ __align__(16) float dynamic[];
  __shared__ float tile[64];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  tile[threadIdx.x] = i < a.n ? a.in[i] : 0.0f;
  __syncthreads();
  mirror(tile, threadIdx.x);
  __syncthreads();
  dynamic[threadIdx.x] = twice(tile[threadIdx.x]);
  __syncthreads();
  if (i < a.n) a.out[i] = dynamic[threadIdx.x];
}

extern "C" __global__ void positions(unsigned* out) {
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] =
      block * 10000 + threadIdx.z * 1000 + threadIdx.y * 100 + threadIdx.x;
}

extern "C" __global__ void votes(unsigned* out, int n) {
  const int i = threadIdx.x;
  const int any = __syncthreads_or(i == n), all = __syncthreads_and(i < n), count = __syncthreads_count(i < n);
  if (i == 0) { out[0] = any; out[1] = all; out[2] = count; }
}

extern "C" __global__ void atomics(const Args a) {
  __shared__ unsigned total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  atomicAdd(&total, 2u);
  atomicOr(&a.count[1], 1u << (threadIdx.x % 32));
  atomicMax(&a.count[2], threadIdx.x);
  atomicAdd(&a.out[0], 0.5f);
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(&a.count[0], total);
}

// Three sizes of parameters, each at its natural alignment.
extern "C" __global__ void parameters(unsigned char first, double* out, unsigned short third, double fourth) {
  if (threadIdx.x == 0) { out[0] = first; out[1] = third; out[2] = fourth; }
}

extern "C" __global__ void vectors(const Args a) {
  const float4 v = reinterpret_cast<const float4*>(a.in + a.which)[threadIdx.x];
  reinterpret_cast<float4*>(a.out)[threadIdx.x] = make_float4(v.w, v.z, v.y, v.x);
}

// The last thread to come keeps its number: whoever relies on who that is has made a mistake.
extern "C" __global__ void last_to_come(const Args a) { atomicExch(a.count, threadIdx.x); }

// Right only with the barrier.
extern "C" __global__ void neighbours(const Args a) {
  __shared__ float tile[64];
  const int i = threadIdx.x;
  tile[i] = a.in[i];
#ifndef NO_BARRIER
  __syncthreads();
#endif
  a.out[i] = tile[(i + 1) % 64];
}

struct Pair {
  int first, second;
};
__constant__ float kTable[3] = {1.0f, 2.0f, 4.0f};

extern "C" __global__ void declarations(const Args a) {
  __shared__ int one, several[4];
  __shared__ __align__(16) float4 vectors[2][32];
  __shared__ Pair pairs[64];
  const int i = threadIdx.x;
  if (i == 0) one = 5;
  if (i < 4) several[i] = i;
  vectors[i / 32][i % 32] = make_float4(i, 0.0f, 0.0f, kTable[i % 3]);
  pairs[i].second = i;
  __syncthreads();
  const int other = 63 - i;
  a.out[i] = one + several[i % 4] + vectors[other / 32][other % 32].x + vectors[0][i % 32].w + pairs[other].second;
}

// ---- wrong ----

extern "C" __global__ void shared_read_then_written(const Args a) {
  __shared__ float tile[64];
  tile[threadIdx.x] = 1.0f;
  __syncthreads();
  const float next = tile[(threadIdx.x + 1) % 64];
  tile[threadIdx.x] += next;
  a.out[threadIdx.x] = next;
}

extern "C" __global__ void shared_atomic_then_read(const Args a) {
  __shared__ int total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  atomicAdd(&total, 1);
  if (a.which) __syncthreads();
  a.out[threadIdx.x] = total;
}

extern "C" __global__ void local_without_value(const Args a) {
  float values[4];
  if (a.which) values[2] = 1.0f;
  a.out[0] = values[a.n];
}

extern "C" __global__ void shared_scalar_race(const Args a) {
  __shared__ int flag;
  flag = 1;
  __syncthreads();
  a.out[threadIdx.x] = flag;
}

extern "C" __global__ void shared_bytes_race(const Args a) {
  __shared__ unsigned char bytes[64];
  bytes[threadIdx.x] = 1;  // neighbours in one word are no race
  __syncthreads();
  if (a.which) bytes[threadIdx.x / 2] = 2;
}

extern "C" __global__ void shared_uninitialised(const Args a) {
  __shared__ float tile[64];
  if (threadIdx.x != 5) tile[threadIdx.x] = 1.0f;
  __syncthreads();
  a.out[threadIdx.x] = tile[threadIdx.x];
}

// The first block's values are no initialisation of the second one's.
extern "C" __global__ void shared_of_another_block(const Args a) {
  __shared__ float tile[64];
  if (blockIdx.x == 0) tile[threadIdx.x] = 1.0f;
  __syncthreads();
  a.out[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void shared_bounds(const Args a) {
  __shared__ float before[64];
  __shared__ float after[64];
  float* flat = before;
  before[threadIdx.x] = after[threadIdx.x] = 1.0f;
  flat[static_cast<int>(threadIdx.x) + a.which] = 2.0f;
}

extern "C" __global__ void index_bounds(const Args a) {
  __shared__ float tile[4][16];
  tile[threadIdx.x / 16][threadIdx.x % 16 + a.which] = 1.0f;
}

extern "C" __global__ void other_barrier(const Args a) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

extern "C" __global__ void left_before_barrier(const Args a) {
  if (static_cast<int>(threadIdx.x) >= a.n) return;
  __syncthreads();
}

extern "C" __global__ void signed_overflow(const Args a) { a.count[0] = a.which * 65536; }
extern "C" __global__ void shift(const Args a) { a.count[0] = 1u << a.which; }
extern "C" __global__ void to_integer(const Args a) { a.count[0] = static_cast<int>(a.in[0]); }
extern "C" __global__ void wrapped(const Args a) { a.out[static_cast<size_t>(a.which) * 4] = 1.0f; }
extern "C" __global__ void unsigned_wrap(const Args a) { a.out[static_cast<unsigned>(a.which) - 1u] = 1.0f; }

extern "C" __global__ void stack(const Args a) {
  volatile char local[80 * 1024];
  for (int i = 0; i < 80 * 1024; ++i) local[i] = 1;
}

extern "C" __global__ void all_write_one(const Args a) {
  a.out[a.which ? 0 : blockIdx.x * 64 + threadIdx.x] = 1.0f;
}

// Passes values to the next thread, or block, through global memory.
extern "C" __global__ void pass_on(const Args a) {
  const unsigned n = gridDim.x * 64, i = blockIdx.x * 64 + threadIdx.x;
  a.out[i] = a.in[i];
  if (a.which != 1) __syncthreads();
  const unsigned other = a.which == 2 ? (i + n - 64) % n : blockIdx.x * 64 + (threadIdx.x + 63) % 64;
  a.out[n + i] = a.out[other];
}
