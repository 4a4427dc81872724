// Reading class scores, which an engine writes in FP32 or FP16.
#pragma once
#include "common.cuh"

__device__ __forceinline__ float load_score(const void* scores, long long at, int half) {
    return half ? half_to_float(static_cast<const half_bits*>(scores)[at])
                : static_cast<const float*>(scores)[at];
}

// Four neighbours at once; `at` is a multiple of 4 and the whole group is inside the row.
__device__ __forceinline__ float4 load_scores4(const void* scores, long long at, int half) {
    if (!half) return *reinterpret_cast<const float4*>(static_cast<const float*>(scores) + at);
    const ushort4 bits = *reinterpret_cast<const ushort4*>(static_cast<const half_bits*>(scores) + at);
    return make_float4(half_to_float(bits.x), half_to_float(bits.y), half_to_float(bits.z),
                       half_to_float(bits.w));
}
