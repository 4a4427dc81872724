// The speckle filters, named as in hfd_edge/sar/speckle.py, on intensity in shared memory: 0 marks no-data, a
// measurement is positive.
//
// Accuracy: the moments of a window take two passes, and every term of their sums is positive, so nothing
// cancels and no pivot is needed. A result depends on the pixels of its window alone, bit for bit: products and
// sums fuse only where fmaf is written, and a full window has the same arithmetic with and without no-data
// elsewhere. Squares keep within single precision between -180 and +180 dB; radiometry.MAX_DB is 100.
#pragma once
#include "common.cuh"

constexpr float FROST_DAMPING = 2.0f;
constexpr int REFINED_LEE_RADIUS = 3;
constexpr int SUBWINDOW_REACH = 2;  // from a pixel to the centres of the outer sub-windows of refined Lee

enum Filter { BOXCAR, LEE, KUAN, GAMMA_MAP };

struct Moments {
    float count, mean, squares;  // squares: sum of (I - mean)^2
};

// 1 / count; the constant of a full window has the same bits as the division.
__device__ __forceinline__ float inverse(float count) { return count > 0.0f ? 1.0f / count : 0.0f; }

// Moments of a row of the window, 2 RADIUS + 1 pixels. Without MASKED every pixel is known to be valid.
template <int RADIUS, bool MASKED>
__device__ __forceinline__ Moments row_moments(const float* pixel) {
    constexpr int SIDE = 2 * RADIUS + 1;
    float value[SIDE];
    Moments row = {MASKED ? 0.0f : static_cast<float>(SIDE), 0.0f, 0.0f};
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < SIDE; ++i) {
        value[i] = pixel[i - RADIUS];
        total += value[i];  // 0 at no-data
        if (MASKED && value[i] > 0.0f) row.count += 1.0f;
    }
    row.mean = total * inverse(row.count);
#pragma unroll
    for (int i = 0; i < SIDE; ++i) {
        const float distance = !MASKED || value[i] > 0.0f ? value[i] - row.mean : 0.0f;
        row.squares = fmaf(distance, distance, row.squares);
    }
    return row;
}

// Merged moments of the rows of a window. Source: Chan, Golub & LeVeque (1983), eq. 2.1 for many parts.
template <int SIDE>
__device__ __forceinline__ Moments merge(const Moments (&rows)[SIDE]) {
    Moments window = {0.0f, 0.0f, 0.0f};
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < SIDE; ++i) {
        window.count += rows[i].count;
        total = fmaf(rows[i].count, rows[i].mean, total);
    }
    window.mean = total * inverse(window.count);
#pragma unroll
    for (int i = 0; i < SIDE; ++i) {
        const float distance = rows[i].mean - window.mean;
        window.squares = fmaf(rows[i].count * distance, distance, window.squares + rows[i].squares);
    }
    return window;
}

// Moments of a small window in two passes, row by row; columns of row y are first(y) to last(y).
template <class Run>
__device__ __forceinline__ Moments window_moments(const float* centre, int pitch, int radius, Run run) {
    Moments window = {0.0f, 0.0f, 0.0f};
    float total = 0.0f;
    for (int y = -radius; y <= radius; ++y) {
        for (int x = run.first(y); x <= run.last(y); ++x) {
            const float value = centre[y * pitch + x];
            total += value;
            if (value > 0.0f) window.count += 1.0f;
        }
    }
    window.mean = total * inverse(window.count);
    for (int y = -radius; y <= radius; ++y) {
        for (int x = run.first(y); x <= run.last(y); ++x) {
            const float value = centre[y * pitch + x];
            const float distance = value > 0.0f ? value - window.mean : 0.0f;
            window.squares = fmaf(distance, distance, window.squares);
        }
    }
    return window;
}

__device__ __forceinline__ float ci2_of(const Moments& window) {
    return window.count > 1.0f ? window.squares / ((window.count - 1.0f) * (window.mean * window.mean)) : 0.0f;
}

// m + W (I - m) with W = (1 - Cu^2 / Ci^2) / (1 + loss), as a sum of positive terms.
__device__ __forceinline__ float shrink(const Moments& window, float centre, float cu2, float loss) {
    const float noise = cu2 * (window.mean * window.mean) * (window.count - 1.0f);
    if (!(window.squares > noise)) return window.mean;
    const float share = noise / window.squares, scale = 1.0f / (1.0f + loss);
    return fmaf(scale * (1.0f - share), centre, scale * (share + loss) * window.mean);
}

__device__ __forceinline__ float lee(const Moments& window, float centre, float cu2) {
    return shrink(window, centre, cu2, 0.0f);
}

__device__ __forceinline__ float kuan(const Moments& window, float centre, float cu2) {
    return shrink(window, centre, cu2, cu2);
}

// With q = 1 / alpha the estimate is m (p + sqrt(p^2 + 4 q L I / m)) / 2, p = 1 - (L + 1) q, where p >= 0.
__device__ __forceinline__ float gamma_map(const Moments& window, float centre, float cu2, float looks) {
    const float ci2 = ci2_of(window);
    if (ci2 <= cu2) return window.mean;
    if (ci2 >= 2.0f * cu2) return centre;
    const float q = (ci2 - cu2) / (1.0f + cu2), p = fmaf(-(looks + 1.0f), q, 1.0f);
    return 0.5f * window.mean * (p + sqrtf(fmaf(4.0f * q * looks, centre / window.mean, p * p)));
}

__device__ __forceinline__ float box_filter(int filter, const Moments& window, float centre, float looks) {
    const float cu2 = 1.0f / looks;
    if (filter == LEE) return lee(window, centre, cu2);
    if (filter == KUAN) return kuan(window, centre, cu2);
    if (filter == GAMMA_MAP) return gamma_map(window, centre, cu2, looks);
    return window.mean;
}

struct Square {
    int radius;
    __device__ int first(int) const { return -radius; }
    __device__ int last(int) const { return radius; }
};

// Half windows in the order of speckle._half_windows: left, right, top, bottom, top left, bottom right, top
// right, bottom left; each with its edge line.
struct HalfWindow {
    int side;
    __device__ int first(int y) const {
        if (side == 1) return 0;
        if (side == 5) return -y;
        if (side == 6) return y;
        return -REFINED_LEE_RADIUS;
    }
    __device__ int last(int y) const {
        if (side == 0) return 0;
        if (side == 4) return -y;
        if (side == 7) return y;
        if ((side == 2 && y > 0) || (side == 3 && y < 0)) return -REFINED_LEE_RADIUS - 1;
        return REFINED_LEE_RADIUS;
    }
};

__device__ float frost(const float* centre, int pitch, int radius) {
    const float exponent = -FROST_DAMPING * ci2_of(window_moments(centre, pitch, radius, Square{radius}));
    float total = 0.0f, weights = 0.0f;
    for (int y = 0; y <= radius; ++y) {
        for (int x = 0; x <= radius; ++x) {
            const float weight = expf(exponent * sqrtf(static_cast<float>(y * y + x * x)));
            // The same distance in the other quadrants; the axes have fewer.
            const int copies = (y > 0 ? 2 : 1) * (x > 0 ? 2 : 1);
            for (int i = 0; i < copies; ++i) {
                const bool flip_x = x > 0 && (i & 1), flip_y = i > (x > 0 ? 1 : 0);
                const float value = centre[(flip_y ? -y : y) * pitch + (flip_x ? -x : x)];
                total = fmaf(weight, value, total);
                if (value > 0.0f) weights += weight;
            }
        }
    }
    return total / weights;
}

// Mean and Ci^2 of the 3 x 3 sub-windows of one band around every pixel within SUBWINDOW_REACH of a tile.
struct Subwindows {
    float* mean;  // 0 where no pixel is valid
    float* ci2;   // infinite where fewer than two are
    int pitch;
};

__device__ __forceinline__ void fill_subwindow(const Subwindows& s, int at, const float* centre, int pitch) {
    const Moments window = window_moments(centre, pitch, 1, Square{1});
    s.mean[at] = window.mean;
    s.ci2[at] = window.count < 2.0f ? __uint_as_float(0x7f800000u) : ci2_of(window);
}

// Mean of the five smallest Ci^2 of the nine sub-windows, those with too few pixels left out.
__device__ __forceinline__ float local_noise(const float* ci2, int pitch) {
    float value[9];
#pragma unroll
    for (int i = 0; i < 9; ++i) {
        value[i] = ci2[(i / 3 - 1) * SUBWINDOW_REACH * pitch + (i % 3 - 1) * SUBWINDOW_REACH];
    }
    float total = 0.0f, known = 0.0f;
#pragma unroll
    for (int place = 0; place < 5; ++place) {
#pragma unroll
        for (int i = 8; i > place; --i) {
            const float smaller = fminf(value[i], value[i - 1]);
            value[i] = fmaxf(value[i], value[i - 1]);
            value[i - 1] = smaller;
        }
        if (is_finite(value[place])) total += value[place], known += 1.0f;
    }
    return total / fmaxf(known, 1.0f);
}

// Which half window lies on the pixel's side of the strongest edge; `mean` points at the pixel's own.
__device__ __forceinline__ int edge_side(const float* mean, int pitch) {
    const float centre = *mean;
    float m[9], distance[9];
#pragma unroll
    for (int i = 0; i < 9; ++i) {
        const float value = mean[(i / 3 - 1) * SUBWINDOW_REACH * pitch + (i % 3 - 1) * SUBWINDOW_REACH];
        const bool known = value > 0.0f;
        m[i] = known ? value : centre;
        distance[i] = known ? fabsf(value - centre) : __uint_as_float(0x7f800000u);
    }
    const float gradient[4] = {fabsf((m[0] + m[3] + m[6]) - (m[2] + m[5] + m[8])),
                               fabsf((m[0] + m[1] + m[2]) - (m[6] + m[7] + m[8])),
                               fabsf((m[0] + m[1] + m[3]) - (m[8] + m[7] + m[5])),
                               fabsf((m[2] + m[1] + m[5]) - (m[6] + m[7] + m[3]))};
    const bool second_closer[4] = {distance[5] < distance[3], distance[7] < distance[1],
                                   distance[8] < distance[0], distance[6] < distance[2]};
    int side = second_closer[0];
    float best = gradient[0];
#pragma unroll
    for (int i = 1; i < 4; ++i) {
        if (gradient[i] > best) best = gradient[i], side = 2 * i + second_closer[i];
    }
    return side;
}

__device__ float refined_lee(const float* pixel, int pitch, const Subwindows& s, int at) {
    const HalfWindow half = {edge_side(s.mean + at, s.pitch)};
    const Moments window = window_moments(pixel, pitch, REFINED_LEE_RADIUS, half);
    return kuan(window, *pixel, local_noise(s.ci2 + at, s.pitch));
}
