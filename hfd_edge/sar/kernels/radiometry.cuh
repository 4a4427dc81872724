// What stored SAR pixels mean, named as in hfd_edge/sar/radiometry.py, and how they are read.
#pragma once
#include "common.cuh"

constexpr float DB_PER_NEPER = 4.342944819f;
constexpr float MAX_DB = 100.0f;
constexpr float LARGEST = 3.402823466e38f;

enum StoredType { UINT8, UINT16, FLOAT32, COMPLEX64 };  // launch.PIXEL_TYPES
enum Units { INTENSITY, AMPLITUDE, COMPLEX, SIGMA0_DB, STRETCHED };
enum Fault { NEGATIVE_LINEAR = 1, BEYOND_MAX_DB = 2 };

__device__ __forceinline__ float amplitude_to_intensity(float amplitude) { return amplitude * amplitude; }

__device__ __forceinline__ float complex_to_intensity(float real, float imag) {
    return fmaf(real, real, imag * imag);
}

__device__ __forceinline__ float db_to_intensity(float db) { return expf(db * (1.0f / DB_PER_NEPER)); }

__device__ __forceinline__ float intensity_to_db(float intensity) { return logf(intensity) * DB_PER_NEPER; }

// What check_units refuses, as bits of Fault.
__device__ __forceinline__ unsigned check_units(int units, float value) {
    if (units == INTENSITY || units == AMPLITUDE) return value < 0.0f ? NEGATIVE_LINEAR : 0;
    if (units == SIGMA0_DB) return value > MAX_DB ? BEYOND_MAX_DB : 0;
    return 0;
}

__device__ __forceinline__ float to_intensity(int units, float real, float imag) {
    if (units == AMPLITUDE) return amplitude_to_intensity(real);
    if (units == COMPLEX) return complex_to_intensity(real, imag);
    if (units == SIGMA0_DB) return db_to_intensity(real);
    return real;
}

// Power that has a logarithm; false for NaN.
__device__ __forceinline__ bool is_power(float intensity) { return intensity > 0.0f && intensity <= LARGEST; }

// Stored types: the parts of a pixel, and four pixels at an aligned address.
__device__ __forceinline__ float real_part(unsigned char pixel) { return pixel; }
__device__ __forceinline__ float real_part(unsigned short pixel) { return pixel; }
__device__ __forceinline__ float real_part(float pixel) { return pixel; }
__device__ __forceinline__ float real_part(float2 pixel) { return pixel.x; }
template <class T>
__device__ __forceinline__ float imag_part(T) { return 0.0f; }
__device__ __forceinline__ float imag_part(float2 pixel) { return pixel.y; }

__device__ __forceinline__ void read_aligned(const unsigned char* from, float4& real, float4&) {
    const uchar4 four = *reinterpret_cast<const uchar4*>(from);
    real = make_float4(four.x, four.y, four.z, four.w);
}
__device__ __forceinline__ void read_aligned(const unsigned short* from, float4& real, float4&) {
    const ushort4 four = *reinterpret_cast<const ushort4*>(from);
    real = make_float4(four.x, four.y, four.z, four.w);
}
__device__ __forceinline__ void read_aligned(const float* from, float4& real, float4&) {
    real = *reinterpret_cast<const float4*>(from);
}
__device__ __forceinline__ void read_aligned(const float2* from, float4& real, float4& imag) {
    const float4* pairs = reinterpret_cast<const float4*>(from);
    const float4 low = pairs[0], high = pairs[1];
    real = make_float4(low.x, low.z, high.x, high.z);
    imag = make_float4(low.y, low.w, high.y, high.w);
}
