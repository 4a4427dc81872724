// Stored SAR pixels to network input in one launch: calibration, validity, speckle filter, decibels, clip,
// standardise; `Preprocessing.__call__` of hfd_edge/sar/preprocessing.py.
//
// A block computes a tile of output pixels in all bands. It reads the tile's stored pixels and their halo once,
// four at a time where they are aligned, and keeps the intensity of every band in shared memory, 0 where a
// pixel is no measurement in some band; a measurement is never 0. Its threads then own a column of
// COLUMN_ROWS output pixels each and walk down it, so each row of a window is summed once for all windows that
// it is in, and a warp writes whole lines.
#include "filters.cuh"
#include "radiometry.cuh"

constexpr int MAX_BANDS = 16;
constexpr int QUAD = 4;
constexpr int COLUMN_ROWS = 8;
constexpr int MAX_THREADS = 256;

// SPECKLE_ARGS of hfd_edge/runtime/launch.py.
struct SpeckleArgs {
    const void* raw;
    void* out;
    unsigned char* valid;
    unsigned* faults;
    long long raw_row_stride, raw_band_stride;  // strides in elements
    long long out_row_stride, out_band_stride;
    long long valid_row_stride;
    int rows, cols, bands;
    int first_row, stop_row;  // rows of raw to compute; row 0 of out and valid is first_row
    int dtype, units, filter, radius;
    int half_output, vector_input, vector_output, has_nodata;
    int tile_rows;
    float nodata, looks;
    float low[MAX_BANDS], high[MAX_BANDS], mean[MAX_BANDS], inverse_std[MAX_BANDS];
};

// Where a block's tile lies in the image, and its pixels with halo in shared memory. Rows begin at a multiple
// of QUAD columns, so there is a margin of unused columns beside the halo.
struct Tile {
    float* pixels;       // of band 0
    int row, col;        // of the image: first output pixel
    int rows, cols;      // output pixels inside the image
    int radius, margin;  // halo, and halo rounded up to whole quads
    int pitch, plane;    // floats from row to row, from band to band
};

// Finite and not the no-data value.
__device__ __forceinline__ bool is_measured(const SpeckleArgs& a, float real, float imag) {
    return is_finite(real) && is_finite(imag) && !(a.has_nodata && real == a.nodata && imag == 0.0f);
}

__device__ __forceinline__ float standardise(const SpeckleArgs& a, int band, float value) {
    const float clipped = fminf(fmaxf(value, a.low[band]), a.high[band]);
    return (clipped - a.mean[band]) * a.inverse_std[band];
}

// Four pixels of one row and band, columns col to col + 3; only those from `first` up to `stop` are wanted,
// and columns beyond the image replicate its edge.
template <class T>
__device__ __forceinline__ void read_quad(const SpeckleArgs& a, const T* row, int col, int first, int stop,
                                          float (&real)[QUAD], float (&imag)[QUAD]) {
    if (a.vector_input && col >= 0 && col + QUAD <= a.cols) {
        float4 re, im = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        read_aligned(row + col, re, im);
        real[0] = re.x, real[1] = re.y, real[2] = re.z, real[3] = re.w;
        imag[0] = im.x, imag[1] = im.y, imag[2] = im.z, imag[3] = im.w;
        return;
    }
#pragma unroll
    for (int i = 0; i < QUAD; ++i) {
        real[i] = imag[i] = 0.0f;
        if (col + i >= first && col + i < stop) {
            const T pixel = row[max(0, min(col + i, a.cols - 1))];
            real[i] = real_part(pixel), imag[i] = imag_part(pixel);
        }
    }
}

__device__ __forceinline__ void report_faults(const SpeckleArgs& a, unsigned faults) {
    if (faults) atomicOr(a.faults, faults);
}

// Fill the tile's intensity. True when every pixel of this thread's share is valid.
template <class T>
__device__ bool load_pixels(const SpeckleArgs& a, const Tile& t) {
    const int quads = t.pitch / QUAD, rows = t.rows + 2 * t.radius;
    const int left = t.col - t.margin, first = t.col - t.radius, stop = t.col + t.cols + t.radius;
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
    unsigned faults = 0;
    bool complete = true;
    for (int item = thread; item < rows * quads; item += threads) {
        const int row = item / quads, quad = item - row * quads, col = left + quad * QUAD;
        if (col + QUAD <= first || col >= stop) continue;
        const int y = max(0, min(t.row - t.radius + row, a.rows - 1));
        const T* source = static_cast<const T*>(a.raw) + y * a.raw_row_stride;
        float4* target = reinterpret_cast<float4*>(t.pixels + row * t.pitch + quad * QUAD);
        unsigned lanes = 0xfu;
        int changed = 0;  // bands before it were written when more lanes seemed valid
        for (int band = 0; band < a.bands; ++band) {
            float real[QUAD], imag[QUAD], power[QUAD];
            read_quad(a, source + band * a.raw_band_stride, col, first, stop, real, imag);
            const unsigned before = lanes;
#pragma unroll
            for (int i = 0; i < QUAD; ++i) {
                const bool measured = is_measured(a, real[i], imag[i]);
                if (measured) faults |= check_units(a.units, real[i]);
                power[i] = to_intensity(a.units, real[i], imag[i]);
                const bool wanted = col + i >= first && col + i < stop;
                if (wanted && !(measured && is_power(power[i]))) lanes &= ~(1u << i);
            }
            if (lanes != before) changed = band;
#pragma unroll
            for (int i = 0; i < QUAD; ++i) {
                if (!(lanes >> i & 1u)) power[i] = 0.0f;
            }
            target[band * (t.plane / QUAD)] = make_float4(power[0], power[1], power[2], power[3]);
        }
        for (int band = 0; band < changed; ++band) {
            float* pixel = reinterpret_cast<float*>(target) + band * t.plane;
            for (int i = 0; i < QUAD; ++i) {
                if (!(lanes >> i & 1u)) pixel[i] = 0.0f;
            }
        }
        complete = complete && lanes == 0xfu;
    }
    report_faults(a, faults);
    return complete;
}

__device__ __forceinline__ Tile tile_of_block(const SpeckleArgs& a, int radius, float* shared) {
    Tile t;
    t.pixels = shared;
    t.col = blockIdx.x * blockDim.x;
    t.row = a.first_row + blockIdx.y * a.tile_rows;
    t.cols = min(static_cast<int>(blockDim.x), a.cols - t.col);
    t.rows = min(a.tile_rows, a.stop_row - t.row);
    t.radius = radius;
    t.margin = (radius + QUAD - 1) / QUAD * QUAD;
    t.pitch = blockDim.x + 2 * t.margin;
    t.plane = (a.tile_rows + 2 * radius) * t.pitch;
    return t;
}

// Load a tile with the type of the stored pixels, for all threads of the block; true when all of it is valid.
__device__ __forceinline__ bool load_tile(const SpeckleArgs& a, const Tile& t) {
    bool complete = false;
    if (a.dtype == UINT8) complete = load_pixels<unsigned char>(a, t);
    if (a.dtype == UINT16) complete = load_pixels<unsigned short>(a, t);
    if (a.dtype == FLOAT32) complete = load_pixels<float>(a, t);
    if (a.dtype == COMPLEX64) complete = load_pixels<float2>(a, t);
    return !__syncthreads_or(!complete);
}

// ---- writing

// A thread's column of output pixels: warps write neighbours, so single stores fill whole lines.
struct Column {
    long long out, valid;
    float* pixel;  // in shared memory: the first output pixel itself, not its halo
    int rows;
};

__device__ __forceinline__ Column column_of_thread(const SpeckleArgs& a, const Tile& t) {
    const int top = threadIdx.y * COLUMN_ROWS, left = threadIdx.x;
    const long long row = t.row - a.first_row + top, col = t.col + left;
    Column c;
    c.out = row * a.out_row_stride + col;
    c.valid = row * a.valid_row_stride + col;
    c.pixel = t.pixels + (top + t.radius) * t.pitch + t.margin + left;
    c.rows = left < t.cols ? min(COLUMN_ROWS, t.rows - top) : 0;
    return c;
}

__device__ __forceinline__ void write_value(const SpeckleArgs& a, long long at, float value) {
    if (a.half_output) {
        static_cast<half_bits*>(a.out)[at] = float_to_half(value);
    } else {
        static_cast<float*>(a.out)[at] = value;
    }
}

// Row `row` of a column; `filtered` matters only at valid pixels.
__device__ __forceinline__ void write_pixel(const SpeckleArgs& a, const Column& c, int band, int row,
                                            bool valid, float filtered) {
    const float value = valid ? standardise(a, band, intensity_to_db(filtered)) : 0.0f;
    write_value(a, c.out + band * a.out_band_stride + row * a.out_row_stride, value);
    if (band == 0) a.valid[c.valid + row * a.valid_row_stride] = valid;
}

// The first `count` of four values; all at once where a.vector_output says that rows are aligned.
__device__ __forceinline__ void write_quad(const SpeckleArgs& a, long long at, const float (&value)[QUAD],
                                           int count) {
    if (a.vector_output && count == QUAD && a.half_output) {
        *reinterpret_cast<ushort4*>(static_cast<half_bits*>(a.out) + at) =
            make_ushort4(float_to_half(value[0]), float_to_half(value[1]), float_to_half(value[2]),
                         float_to_half(value[3]));
    } else if (a.vector_output && count == QUAD) {
        *reinterpret_cast<float4*>(static_cast<float*>(a.out) + at) =
            make_float4(value[0], value[1], value[2], value[3]);
    } else {
        for (int i = 0; i < count; ++i) write_value(a, at + i, value[i]);
    }
}

__device__ __forceinline__ void write_valid(const SpeckleArgs& a, long long at, unsigned lanes, int count) {
    if (a.vector_output && count == QUAD) {
        *reinterpret_cast<uchar4*>(a.valid + at) =
            make_uchar4(lanes & 1u, lanes >> 1 & 1u, lanes >> 2 & 1u, lanes >> 3 & 1u);
    } else {
        for (int i = 0; i < count; ++i) a.valid[at + i] = lanes >> i & 1u;
    }
}

// ---- kernels

template <int RADIUS, bool MASKED>
__device__ __forceinline__ void filter_columns(const SpeckleArgs& a, const Tile& t) {
    constexpr int SIDE = 2 * RADIUS + 1;
    Column c = column_of_thread(a, t);
    for (int band = 0; band < a.bands && c.rows > 0; ++band, c.pixel += t.plane) {
        Moments rows[SIDE];
#pragma unroll
        for (int i = 0; i < SIDE - 1; ++i) {
            rows[i + 1] = row_moments<RADIUS, MASKED>(c.pixel + (i - RADIUS) * t.pitch);
        }
#pragma unroll 2  // saves half the moves of rows[i]; all eight would spill on sm_120
        for (int row = 0; row < COLUMN_ROWS; ++row) {
            if (row >= c.rows) break;
#pragma unroll
            for (int i = 0; i < SIDE - 1; ++i) rows[i] = rows[i + 1];
            rows[SIDE - 1] = row_moments<RADIUS, MASKED>(c.pixel + (row + RADIUS) * t.pitch);
            const float centre = c.pixel[row * t.pitch];
            const bool valid = !MASKED || centre > 0.0f;
            const float filtered = valid ? box_filter(a.filter, merge(rows), centre, a.looks) : 0.0f;
            write_pixel(a, c, band, row, valid, filtered);
        }
    }
}

template <int RADIUS>
__device__ __forceinline__ void filter_box(const SpeckleArgs& a, float* shared) {
    const Tile t = tile_of_block(a, RADIUS, shared);
    if (load_tile(a, t)) {
        filter_columns<RADIUS, false>(a, t);
    } else {
        filter_columns<RADIUS, true>(a, t);
    }
}

// Sub-windows of one band for all pixels of the tile, shared among the block's threads.
__device__ void fill_subwindows(const Tile& t, const Subwindows& s, const float* pixels) {
    const int rows = t.rows + 2 * SUBWINDOW_REACH, cols = t.cols + 2 * SUBWINDOW_REACH;
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
    for (int item = thread; item < rows * cols; item += threads) {
        const int row = item / cols, col = item - row * cols;
        const int y = row + t.radius - SUBWINDOW_REACH, x = col + t.margin - SUBWINDOW_REACH;
        fill_subwindow(s, row * s.pitch + col, pixels + y * t.pitch + x, t.pitch);
    }
}

// Pixels without a window, four for each thread.
template <class T>
__device__ void convert_quad(const SpeckleArgs& a, int row, int col) {
    const bool logarithm = a.units != STRETCHED && a.units != SIGMA0_DB;
    const int count = min(QUAD, a.cols - col);
    const T* source = static_cast<const T*>(a.raw) + row * a.raw_row_stride;
    const long long out = (row - a.first_row) * a.out_row_stride + col;
    unsigned lanes = 0xfu, faults = 0;
    int changed = 0;  // as in load_pixels
    for (int band = 0; band < a.bands; ++band) {
        float real[QUAD], imag[QUAD], value[QUAD];
        read_quad(a, source + band * a.raw_band_stride, col, 0, a.cols, real, imag);
        const unsigned before = lanes;
#pragma unroll
        for (int i = 0; i < QUAD; ++i) {
            bool valid = is_measured(a, real[i], imag[i]);
            if (valid) faults |= check_units(a.units, real[i]);
            value[i] = real[i];
            if (logarithm) {
                const float power = to_intensity(a.units, real[i], imag[i]);
                valid = valid && is_power(power);
                value[i] = intensity_to_db(power);
            }
            if (!valid && i < count) lanes &= ~(1u << i);
            value[i] = lanes >> i & 1u ? standardise(a, band, value[i]) : 0.0f;
        }
        if (lanes != before) changed = band;
        write_quad(a, out + band * a.out_band_stride, value, count);
    }
#pragma unroll 1  // rare
    for (int band = 0; band < changed; ++band) {
        for (int i = 0; i < count; ++i) {
            if (!(lanes >> i & 1u)) write_value(a, out + band * a.out_band_stride + i, 0.0f);
        }
    }
    write_valid(a, (row - a.first_row) * a.valid_row_stride + col, lanes, count);
    report_faults(a, faults);
}

extern __shared__ float4 shared[];

// The second launch bound, blocks that a multiprocessor holds at least, gives a kernel the registers that it
// needs: left to itself ptxas aims at more blocks than shared memory allows, and spills on some GPUs.

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 4) speckle_3(const SpeckleArgs a) {
    filter_box<1>(a, &shared->x);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 4) speckle_5(const SpeckleArgs a) {
    filter_box<2>(a, &shared->x);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS) speckle_7(const SpeckleArgs a) {
    filter_box<3>(a, &shared->x);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 3) speckle_9(const SpeckleArgs a) {
    filter_box<4>(a, &shared->x);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 3) speckle_11(const SpeckleArgs a) {
    filter_box<5>(a, &shared->x);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 4) speckle_frost(const SpeckleArgs a) {
    const Tile t = tile_of_block(a, a.radius, &shared->x);
    load_tile(a, t);
    Column c = column_of_thread(a, t);
    for (int band = 0; band < a.bands; ++band, c.pixel += t.plane) {
        for (int row = 0; row < c.rows; ++row) {
            const float* pixel = c.pixel + row * t.pitch;
            const bool valid = *pixel > 0.0f;
            write_pixel(a, c, band, row, valid, valid ? frost(pixel, t.pitch, t.radius) : 0.0f);
        }
    }
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 4) speckle_refined_lee(const SpeckleArgs a) {
    const Tile t = tile_of_block(a, REFINED_LEE_RADIUS, &shared->x);
    Subwindows s;
    s.pitch = blockDim.x + 2 * SUBWINDOW_REACH;
    s.mean = t.pixels + a.bands * t.plane;
    s.ci2 = s.mean + (a.tile_rows + 2 * SUBWINDOW_REACH) * s.pitch;
    load_tile(a, t);
    Column c = column_of_thread(a, t);
    const int corner = (threadIdx.y * COLUMN_ROWS + SUBWINDOW_REACH) * s.pitch + threadIdx.x + SUBWINDOW_REACH;
    for (int band = 0; band < a.bands; ++band, c.pixel += t.plane) {
        fill_subwindows(t, s, t.pixels + band * t.plane);
        __syncthreads();
        for (int row = 0; row < c.rows; ++row) {
            const float* pixel = c.pixel + row * t.pitch;
            const bool valid = *pixel > 0.0f;
            const float filtered = valid ? refined_lee(pixel, t.pitch, s, corner + row * s.pitch) : 0.0f;
            write_pixel(a, c, band, row, valid, filtered);
        }
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 4) speckle_none(const SpeckleArgs a) {
    const int row = a.first_row + blockIdx.y * blockDim.y + threadIdx.y;
    const int col = (blockIdx.x * blockDim.x + threadIdx.x) * QUAD;
    if (row >= a.stop_row || col >= a.cols) return;
    if (a.dtype == UINT8) convert_quad<unsigned char>(a, row, col);
    if (a.dtype == UINT16) convert_quad<unsigned short>(a, row, col);
    if (a.dtype == FLOAT32) convert_quad<float>(a, row, col);
    if (a.dtype == COMPLEX64) convert_quad<float2>(a, row, col);
}
