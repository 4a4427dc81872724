// The conversions of common.cuh on arrays, for test_speckle.py.
#include "common.cuh"

struct HalfArgs {
    const float* floats;
    const half_bits* halves;
    half_bits* to_half;
    float* to_float;
    int counts[2];
};

extern "C" __global__ void convert_halves(const HalfArgs a) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < a.counts[0]) a.to_half[i] = float_to_half(a.floats[i]);
    if (i < a.counts[1]) a.to_float[i] = half_to_float(a.halves[i]);
}
