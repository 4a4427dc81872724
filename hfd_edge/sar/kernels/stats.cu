// What a frame looks like in a few numbers, as sar.statistics: a histogram of the network's input with its
// mean and variance, and log10 of the number of looks from the moments of 8 x 8 blocks of the stored pixels.
//
// Everything is counted in integers, so the result does not depend on the schedule. Both kernels add to what
// is in their output already: a frame may come in parts.
#include "logits.cuh"
#include "radiometry.cuh"

constexpr int BANDS = 16;
constexpr int BINS = 128;         // sar.statistics.BINS
constexpr int LOOKS_BINS = 1024;  // of log10 of the looks; their median is known to half a bin
constexpr int BLOCK_PX = 8;       // sar.statistics.BLOCK_PX
constexpr int GROUP = 4;
constexpr int THREADS = 256;
// Values become integers of this many steps between the clip limits: fine enough for a mean (1e-4 dB), and
// the squares of 2^28 pixels still fit 64 bits.
constexpr int STEP_BITS = 18;
constexpr int STEPS = 1 << STEP_BITS;

struct StatsArgs {
    const void* raw;             // stored pixels (bands, rows, cols)
    const void* pixels;          // network input (bands, rows, cols), FP32 or FP16
    const unsigned char* valid;  // (rows, cols)
    unsigned long long* sums;    // (bands, 2): steps and their squares
    unsigned* histogram;         // (bands, BINS)
    unsigned* looks;             // (bands, LOOKS_BINS)
    long long raw_row;           // strides, elements
    long long raw_band;
    long long pixels_row;
    long long pixels_band;
    long long valid_row;
    int bands;
    int rows;
    int cols;
    int dtype;        // StoredType of raw
    int units;        // Units of raw
    int half;         // pixels are FP16
    int aligned;      // groups of four pixels may be read as vectors
    float looks_low;  // limits of log10 of the looks
    float looks_high;
    float low[BANDS];    // clip limits in the units of the pixels
    float scale[BANDS];  // steps per unit
};

// ---- network input ----

// What a thread, or a block, has counted of one band.
struct Counts {
    unsigned* histogram;  // of the block
    unsigned long long sum, squares;
};

__device__ __forceinline__ void count_pixel(const StatsArgs& a, int band, float value, Counts& counts) {
    const float position = (value - a.low[band]) * a.scale[band];
    const unsigned step = static_cast<unsigned>(fminf(fmaxf(position, 0.0f), STEPS - 1.0f));
    atomicAdd(&counts.histogram[step / (STEPS / BINS)], 1u);
    counts.sum += step;
    counts.squares += static_cast<unsigned long long>(step) * step;
}

// The valid ones of four neighbours, as far as the row goes.
__device__ __forceinline__ void count_group(const StatsArgs& a, int band, int row, int col, Counts& counts) {
    const unsigned char* valid = a.valid + row * a.valid_row + col;
    const long long at = band * a.pixels_band + row * a.pixels_row + col;
    if (a.aligned && col + GROUP <= a.cols) {
        const uchar4 known = *reinterpret_cast<const uchar4*>(valid);
        const float4 values = load_scores4(a.pixels, at, a.half);
        if (known.x) count_pixel(a, band, values.x, counts);
        if (known.y) count_pixel(a, band, values.y, counts);
        if (known.z) count_pixel(a, band, values.z, counts);
        if (known.w) count_pixel(a, band, values.w, counts);
        return;
    }
    for (int i = 0; i < GROUP && col + i < a.cols; ++i) {
        if (valid[i]) count_pixel(a, band, load_score(a.pixels, at + i, a.half), counts);
    }
}

// Add up one number per thread of the block; the result is in totals[0].
__device__ __forceinline__ void block_sum(unsigned long long* totals, unsigned long long mine) {
    totals[threadIdx.x] = mine;
    for (int width = THREADS / 2; width > 0; width /= 2) {
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < width) totals[threadIdx.x] += totals[threadIdx.x + width];
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(256) stats_pixels(const StatsArgs a) {
    __shared__ unsigned histogram[BINS];
    __shared__ unsigned long long totals[2][THREADS];
    const int band = blockIdx.y, thread = threadIdx.x;
    if (thread < BINS) histogram[thread] = 0;
    __syncthreads();
    Counts counts = {histogram, 0, 0};
    const int groups = (a.cols + GROUP - 1) / GROUP;
    const long long every = static_cast<long long>(groups) * a.rows;
    const long long step = static_cast<long long>(gridDim.x) * THREADS;
    for (long long index = static_cast<long long>(blockIdx.x) * THREADS + thread; index < every; index += step) {
        const int row = static_cast<int>(index / groups), col = static_cast<int>(index % groups) * GROUP;
        count_group(a, band, row, col, counts);
    }
    block_sum(totals[0], counts.sum);
    block_sum(totals[1], counts.squares);
    if (thread < 2) atomicAdd(&a.sums[band * 2 + thread], totals[thread][0]);
    if (thread < BINS && histogram[thread]) atomicAdd(&a.histogram[band * BINS + thread], histogram[thread]);
}

// ---- stored pixels ----

template <class T>
__device__ __forceinline__ float power_of(int units, T pixel) {
    return to_intensity(units, real_part(pixel), imag_part(pixel));
}

__device__ __forceinline__ float stored_power(const StatsArgs& a, long long at) {
    if (a.dtype == UINT8) return power_of(a.units, static_cast<const unsigned char*>(a.raw)[at]);
    if (a.dtype == UINT16) return power_of(a.units, static_cast<const unsigned short*>(a.raw)[at]);
    if (a.dtype == FLOAT32) return power_of(a.units, static_cast<const float*>(a.raw)[at]);
    return power_of(a.units, static_cast<const float2*>(a.raw)[at]);
}

// Eight threads share a block of 8 x 8 pixels, a column each. Sum over the eight, for each of them.
__device__ __forceinline__ float block_total(float* shared, float mine) {
    const int lead = threadIdx.x / BLOCK_PX * BLOCK_PX;
    __syncthreads();  // the total before may still be read
    shared[threadIdx.x] = mine;
    __syncthreads();
    float total = 0.0f;
    for (int i = 0; i < BLOCK_PX; ++i) total += shared[lead + i];
    return total;
}

__device__ __forceinline__ void count_looks(const StatsArgs& a, int band, float mean, float variance) {
    if (!(mean > 0.0f && variance > 0.0f)) return;
    const float log_enl = 2.0f * log10f(mean / sqrtf(variance));
    const float position = (log_enl - a.looks_low) / (a.looks_high - a.looks_low) * LOOKS_BINS;
    const int bin = static_cast<int>(fminf(fmaxf(position, 0.0f), LOOKS_BINS - 1.0f));
    atomicAdd(&a.looks[band * LOOKS_BINS + bin], 1u);
}

// A row of 8 x 8 blocks is a row of thread blocks; the host launches whole ones alone.
extern "C" __global__ void __launch_bounds__(256) stats_looks(const StatsArgs a) {
    __shared__ float shared[THREADS];
    const int col = blockIdx.x * THREADS + threadIdx.x;
    const long long first_row = static_cast<long long>(blockIdx.y) * BLOCK_PX;
    const bool leads = threadIdx.x % BLOCK_PX == 0;
    bool known = (col / BLOCK_PX + 1) * BLOCK_PX <= a.cols;
    for (int i = 0; i < BLOCK_PX && known; ++i) known = a.valid[(first_row + i) * a.valid_row + col] != 0;
    known = block_total(shared, known ? 1.0f : 0.0f) == BLOCK_PX;
    for (int band = 0; band < a.bands; ++band) {
        float power[BLOCK_PX];
        for (int i = 0; i < BLOCK_PX; ++i) {
            const long long at = band * a.raw_band + (first_row + i) * a.raw_row + col;
            power[i] = known ? stored_power(a, at) : 0.0f;
        }
        // Moments about the first pixel: a constant block has a variance of exactly zero, and is left out.
        const float pivot = block_total(shared, leads ? power[0] : 0.0f);
        float sum = 0.0f, squares = 0.0f;
        for (int i = 0; i < BLOCK_PX; ++i) sum += power[i] - pivot;
        const float shift = block_total(shared, sum) / (BLOCK_PX * BLOCK_PX);
        for (int i = 0; i < BLOCK_PX; ++i) {
            const float deviation = power[i] - pivot - shift;
            squares = fmaf(deviation, deviation, squares);
        }
        const float variance = block_total(shared, squares) / (BLOCK_PX * BLOCK_PX - 1);
        if (leads && known) count_looks(a, band, pivot + shift, variance);
    }
}
