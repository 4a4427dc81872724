// Square tiles for the network, cut from preprocessed rows of a scene. Right of its last column and below its
// last row the scene goes on as its own mirror image, as raster.tiling.mirrored says.
#include "common.cuh"

constexpr int TILES = 64;  // of one launch; their origins travel with the arguments
constexpr int GROUP = 4;   // neighbouring pixels of one thread

struct TilesArgs {
    const void* pixels;    // (bands, first_row + used_rows, cols)
    void* tiles;           // (tiles, bands, tile_px, tile_px), packed
    long long pixels_row;  // strides, elements
    long long pixels_band;
    int bands;
    int first_row;  // row of `pixels` that tiles start with
    int used_rows;  // rows from there on that hold pixels
    int cols;
    int tile_px;  // a multiple of 4
    int half;     // pixels are FP16, else FP32; they are only moved
    int aligned;  // groups of four pixels inside a row may be read as vectors
    int origins[TILES];  // first column of each tile
};

// Where the pixel at a position beyond `size` is taken from; raster.tiling.mirrored.
__device__ __forceinline__ int mirrored(int position, int size) {
    const int folded = position % (2 * size);
    return min(folded, 2 * size - 1 - folded);
}

template <typename Pixel, typename Pixels>
__device__ __forceinline__ void copy_group(const TilesArgs& a, int index) {
    const int groups = a.tile_px / GROUP;
    const int row = index / groups, col = index % groups * GROUP;
    const int band = blockIdx.y, tile = blockIdx.z;
    const long long source = (a.first_row + mirrored(row, a.used_rows)) * a.pixels_row + band * a.pixels_band;
    const Pixel* pixels = static_cast<const Pixel*>(a.pixels) + source;
    const int first = a.origins[tile] + col;
    Pixels group;
    if (a.aligned && first + GROUP <= a.cols) {
        group = *reinterpret_cast<const Pixels*>(pixels + first);
    } else {
        group.x = pixels[mirrored(first, a.cols)];
        group.y = pixels[mirrored(first + 1, a.cols)];
        group.z = pixels[mirrored(first + 2, a.cols)];
        group.w = pixels[mirrored(first + 3, a.cols)];
    }
    const long long plane = (static_cast<long long>(tile) * a.bands + band) * a.tile_px;
    Pixel* target = static_cast<Pixel*>(a.tiles) + (plane + row) * a.tile_px + col;
    *reinterpret_cast<Pixels*>(target) = group;
}

extern "C" __global__ void __launch_bounds__(256) tiles(const TilesArgs a) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= a.tile_px / GROUP * a.tile_px) return;
    if (a.half) {
        copy_group<half_bits, ushort4>(a, index);
    } else {
        copy_group<float, float4>(a, index);
    }
}
