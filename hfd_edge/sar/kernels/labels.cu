// Class logits at stride 4 or 1 to labels at full size, as raster.logits.labels_rows: bilinear with
// half-pixel centres and clamped edges, then the class with the largest score, the first of equals.
//
// Scores at full size never exist. A block owns a strip of logits columns and walks down it; the two logits
// rows that the current four pixel rows lie between are in shared memory, so that each logit is read once
// (plus one column on either side of a strip and one row at either end of a walk).
#include "logits.cuh"

struct LabelsArgs {
    const void* logits;          // (classes, height, width): the rows from `first` of the whole map
    const unsigned char* valid;  // 0 where the label is nodata_label; null: valid everywhere
    unsigned char* labels;       // its row 0 is pixel row `start`, as for `valid` and `confidence`
    float* confidence;           // softmax of the label's score, 0 at invalid pixels
    long long logits_row;        // strides, elements
    long long logits_band;
    long long valid_row;
    long long labels_row;
    long long confidence_row;
    int classes;
    int height;
    int width;
    int first;
    int start;  // pixel rows start..stop of the whole map, columns 0..cols
    int stop;
    int cols;
    int nodata_label;
    int half;       // logits are FP16
    int columns;    // logits columns of a strip, at most blockDim.x
    int intervals;  // steps down of a block, each between two logits rows
    int aligned;    // groups of four pixels may be stored as vectors
};

constexpr int STRIDE = 4;
constexpr int GROUP = 4;  // neighbouring pixels of one thread

// Between two classes the difference decides, since interpolation is linear: one plane instead of two.
__device__ __forceinline__ int plane_count(const LabelsArgs& a) { return a.classes == 2 ? 1 : a.classes; }

__device__ __forceinline__ float plane_score(const LabelsArgs& a, int plane, long long at) {
    if (a.classes == 2) {
        return load_score(a.logits, at + a.logits_band, a.half) - load_score(a.logits, at, a.half);
    }
    return load_score(a.logits, at + plane * a.logits_band, a.half);
}

// The running maximum over the classes at one pixel, and the sum of exponentials below the softmax.
template <bool CONFIDENCE>
struct Best {
    float score;
    float sum;
    int label;

    __device__ __forceinline__ void begin(float first_score) {
        score = first_score;
        sum = 1.0f;
        label = 0;
    }

    __device__ __forceinline__ void offer(float candidate, int candidate_label) {
        const bool larger = candidate > score;  // strict: the first of equals stays
        if (CONFIDENCE) {
            const float ratio = expf(-fabsf(candidate - score));
            sum = larger ? fmaf(sum, ratio, 1.0f) : sum + ratio;
        }
        score = larger ? candidate : score;
        label = larger ? candidate_label : label;
    }
};

// Store the labels of four neighbouring pixels of one row (row 0 is pixel row `start`).
template <bool CONFIDENCE>
__device__ __forceinline__ void store_group(const LabelsArgs& a, int row, int col,
                                            const Best<CONFIDENCE> (&best)[GROUP]) {
    unsigned char* labels = a.labels + row * a.labels_row + col;
    const unsigned char* valid = a.valid ? a.valid + row * a.valid_row + col : nullptr;
    if (a.aligned && col + GROUP <= a.cols) {
        uchar4 known = make_uchar4(1, 1, 1, 1);
        if (valid) known = *reinterpret_cast<const uchar4*>(valid);
        const unsigned char nodata = static_cast<unsigned char>(a.nodata_label);
        uchar4 result;
        result.x = known.x ? static_cast<unsigned char>(best[0].label) : nodata;
        result.y = known.y ? static_cast<unsigned char>(best[1].label) : nodata;
        result.z = known.z ? static_cast<unsigned char>(best[2].label) : nodata;
        result.w = known.w ? static_cast<unsigned char>(best[3].label) : nodata;
        *reinterpret_cast<uchar4*>(labels) = result;
        if (CONFIDENCE) {
            *reinterpret_cast<float4*>(a.confidence + row * a.confidence_row + col) =
                make_float4(known.x ? 1.0f / best[0].sum : 0.0f, known.y ? 1.0f / best[1].sum : 0.0f,
                            known.z ? 1.0f / best[2].sum : 0.0f, known.w ? 1.0f / best[3].sum : 0.0f);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < GROUP; ++i) {
        if (col + i >= a.cols) break;
        const bool known = !valid || valid[i];
        labels[i] = static_cast<unsigned char>(known ? best[i].label : a.nodata_label);
        if (CONFIDENCE) {
            a.confidence[row * a.confidence_row + col + i] = known ? 1.0f / best[i].sum : 0.0f;
        }
    }
}

// Bring one logits row of the strip, with a column on either side, to shared memory.
__device__ __forceinline__ void stage_row(const LabelsArgs& a, float* staged, int map_row) {
    const int across = a.columns + 2;
    const int left = static_cast<int>(blockIdx.x) * a.columns - 1;
    const int used = min(across, a.width + 1 - left);  // the last strip ends one column after the map
    const long long row = min(max(map_row - a.first, 0), a.height - 1) * a.logits_row;
    for (int plane = 0; plane < plane_count(a); ++plane) {
        for (int i = threadIdx.x; i < used; i += blockDim.x) {
            const int col = min(max(left + i, 0), a.width - 1);
            staged[plane * across + i] = plane_score(a, plane, row + col);
        }
    }
}

// Scores of the four pixels of one logits column, interpolated along the row.
__device__ __forceinline__ void across_group(const float* row, float (&scores)[GROUP]) {
    const float left = row[0], centre = row[1], right = row[2];
    scores[0] = left * 0.375f + centre * 0.625f;
    scores[1] = left * 0.125f + centre * 0.875f;
    scores[2] = centre * 0.875f + right * 0.125f;
    scores[3] = centre * 0.625f + right * 0.375f;
}

// Label the four pixel rows between two staged logits rows, in one column of logits.
template <bool CONFIDENCE>
__device__ __forceinline__ void label_interval(const LabelsArgs& a, const float* above, const float* below,
                                               int first_row, int column) {
    const int across = a.columns + 2;
    Best<CONFIDENCE> best[STRIDE][GROUP];
    for (int plane = 0; plane < plane_count(a); ++plane) {
        float top[GROUP], bottom[GROUP];
        across_group(above + plane * across + threadIdx.x, top);
        across_group(below + plane * across + threadIdx.x, bottom);
#pragma unroll
        for (int j = 0; j < STRIDE; ++j) {
            const float share = (2 * j + 1) / (2.0f * STRIDE);
#pragma unroll
            for (int i = 0; i < GROUP; ++i) {
                const float score = top[i] * (1.0f - share) + bottom[i] * share;
                if (plane == 0) best[j][i].begin(a.classes == 2 ? 0.0f : score);
                if (plane > 0 || a.classes == 2) best[j][i].offer(score, max(plane, 1));
            }
        }
    }
#pragma unroll
    for (int j = 0; j < STRIDE; ++j) {
        const int row = first_row + j;
        if (row >= a.start && row < a.stop) store_group(a, row - a.start, column * STRIDE, best[j]);
    }
}

template <bool CONFIDENCE>
__device__ __forceinline__ void label_stride4(const LabelsArgs& a) {
    extern __shared__ float staged[];  // [2][planes][columns + 2]
    const int size = plane_count(a) * (a.columns + 2);
    const int column = blockIdx.x * a.columns + threadIdx.x;
    const bool used = static_cast<int>(threadIdx.x) < a.columns && column * STRIDE < a.cols;
    // Interval i is pixel rows 4 i + 2 to 4 i + 5, between the centres of logits rows i and i + 1.
    const int begin = (a.start + STRIDE / 2) / STRIDE - 1 + static_cast<int>(blockIdx.y) * a.intervals;
    const int end = min(begin + a.intervals, (a.stop - 1 + STRIDE / 2) / STRIDE);
    stage_row(a, staged, begin);
    for (int interval = begin; interval < end; ++interval) {
        const int turn = (interval - begin) & 1;
        float* below = staged + (1 - turn) * size;
        stage_row(a, below, interval + 1);
        __syncthreads();
        if (used) {
            label_interval<CONFIDENCE>(a, staged + turn * size, below, interval * STRIDE + STRIDE / 2,
                                       column);
        }
        __syncthreads();  // the next step overwrites the row above
    }
}

// At full size nothing is interpolated; a thread takes four neighbouring pixels of one row.
template <bool CONFIDENCE>
__device__ __forceinline__ void label_stride1(const LabelsArgs& a) {
    const int col = (blockIdx.x * blockDim.x + threadIdx.x) * GROUP;
    if (col >= a.cols) return;
    for (int row = a.start + static_cast<int>(blockIdx.y); row < a.stop; row += gridDim.y) {
        const long long at = (row - a.first) * a.logits_row + col;
        Best<CONFIDENCE> best[GROUP];
        for (int plane = 0; plane < plane_count(a); ++plane) {
#pragma unroll
            for (int i = 0; i < GROUP; ++i) {
                if (col + i >= a.cols) break;
                const float score = plane_score(a, plane, at + i);
                if (plane == 0) best[i].begin(a.classes == 2 ? 0.0f : score);
                if (plane > 0 || a.classes == 2) best[i].offer(score, max(plane, 1));
            }
        }
        store_group(a, row - a.start, col, best);
    }
}

extern "C" __global__ void __launch_bounds__(256) labels_stride4(const LabelsArgs a) {
    label_stride4<false>(a);
}

extern "C" __global__ void __launch_bounds__(256) labels_stride4_confidence(const LabelsArgs a) {
    label_stride4<true>(a);
}

extern "C" __global__ void __launch_bounds__(256) labels_stride1(const LabelsArgs a) {
    label_stride1<false>(a);
}

extern "C" __global__ void __launch_bounds__(256) labels_stride1_confidence(const LabelsArgs a) {
    label_stride1<true>(a);
}
