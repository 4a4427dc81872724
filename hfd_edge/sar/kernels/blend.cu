// Adds up the logits of a row of overlapping tiles, as raster.tiling.LogitsBlender: the band of the row of
// tiles before, moved up, plus every tile's logits times its weights. Each output is gathered by one thread,
// tiles in their order, so the sum does not depend on the schedule and needs no atomics.
#include "logits.cuh"

constexpr int TILES = 192;  // of one launch; their origins travel with the arguments
constexpr int GROUP = 4;    // neighbouring columns of one thread; origins and sizes are multiples of it

struct BlendArgs {
    const float* previous;     // (classes, 1 + size, band_cols); null for the first row of tiles
    const void* logits;        // (tiles, classes, size, size), packed
    const float* row_weights;  // (size)
    const float* col_weights;  // (columns of tiles of the scene, size)
    float* band;               // (classes, 1 + size, band_cols); may be `previous` where shift is 0
    int shift;                 // logits rows that the band moves up
    int half;                  // logits are FP16
    int tiles;
    int classes;
    int size;  // logits along a side of a tile
    int band_cols;
    int origins[TILES];  // first band column of each tile, rising
    int columns[TILES];  // row of col_weights of each tile
};

// The first tile that ends right of a column.
__device__ __forceinline__ int first_tile(const BlendArgs& a, int col) {
    int low = 0, high = a.tiles;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (a.origins[middle] + a.size <= col) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

// Add one tile's share; weights of 0 discard the border, whose logits are then not even read.
__device__ __forceinline__ void add_tile(const BlendArgs& a, int tile, int plane, int row, int col,
                                         float row_weight, float4& sum) {
    const int inside = col - a.origins[tile];
    const float* weights = a.col_weights + static_cast<long long>(a.columns[tile]) * a.size;
    const float4 weight = *reinterpret_cast<const float4*>(weights + inside);
    if (weight.x == 0.0f && weight.y == 0.0f && weight.z == 0.0f && weight.w == 0.0f) return;
    const long long first = (static_cast<long long>(tile) * a.classes + plane) * a.size + row;
    const float4 score = load_scores4(a.logits, first * a.size + inside, a.half);
    if (weight.x != 0.0f) sum.x += score.x * (row_weight * weight.x);
    if (weight.y != 0.0f) sum.y += score.y * (row_weight * weight.y);
    if (weight.z != 0.0f) sum.z += score.z * (row_weight * weight.z);
    if (weight.w != 0.0f) sum.w += score.w * (row_weight * weight.w);
}

extern "C" __global__ void __launch_bounds__(256) blend(const BlendArgs a) {
    const int col = (blockIdx.x * blockDim.x + threadIdx.x) * GROUP;
    const int row = blockIdx.y;  // of the band; row 0 keeps the last one that the tiles before finished
    const int plane = blockIdx.z;
    if (col >= a.band_cols) return;
    const long long height = 1 + a.size;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (a.previous && row + a.shift < height) {
        const long long kept = (plane * height + row + a.shift) * a.band_cols + col;
        sum = *reinterpret_cast<const float4*>(a.previous + kept);
    }
    const float row_weight = row ? a.row_weights[row - 1] : 0.0f;
    if (row_weight != 0.0f) {
        for (int tile = first_tile(a, col); tile < a.tiles && a.origins[tile] <= col; ++tile) {
            add_tile(a, tile, plane, row - 1, col, row_weight, sum);
        }
    }
    *reinterpret_cast<float4*>(a.band + (plane * height + row) * a.band_cols + col) = sum;
}
