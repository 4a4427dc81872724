// What the kernels share: half precision and floating-point classes, by bit patterns alone. No header of the
// toolkit is included, because NVRTC has none to include.
#pragma once

// A binary16 number as its bits.
using half_bits = unsigned short;

__device__ __forceinline__ bool is_finite(float value) {
    return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u;
}

// Nearest half, ties to even, as IEEE 754 and NumPy round; overflow gives infinity, NaN stays NaN.
__device__ __forceinline__ half_bits float_to_half(float value) {
    const unsigned bits = __float_as_uint(value);
    const unsigned sign = (bits >> 16) & 0x8000u;
    const unsigned magnitude = bits & 0x7fffffffu;
    unsigned result;
    if (magnitude > 0x7f800000u) {
        result = 0x7e00u;
    } else if (magnitude >= 0x47800000u) {  // 65536 and more; what lies between 65520 and that rounds up below
        result = 0x7c00u;
    } else if (magnitude < 0x38800000u) {
        // Below 2^-14 a half has steps of 2^-24, which are the steps of a float between 0.5 and 1.
        result = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u;
    } else {
        // Rebias the exponent from 127 to 15; half a step less one, and one more if the kept part is odd.
        result = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    }
    return static_cast<half_bits>(sign | result);
}

__device__ __forceinline__ float half_to_float(half_bits half) {
    const unsigned sign = (half & 0x8000u) << 16;
    const unsigned magnitude = (half & 0x7fffu) << 13;
    float value;
    if (magnitude >= 0x0f800000u) {  // infinity and NaN
        value = __uint_as_float(magnitude + 0x70000000u);
    } else if (magnitude < 0x00800000u) {  // zero and subnormal: 2^-14 too much, then exactly subtracted
        value = __uint_as_float(magnitude + 0x38800000u) - __uint_as_float(0x38800000u);
    } else {
        value = __uint_as_float(magnitude + 0x38000000u);
    }
    return __uint_as_float(__float_as_uint(value) | sign);
}
