// The part of CUDA's cuda_bf16.h that CuPy's bfloat16.cuh needs: storage, conversions, and what
// is not a finite number.  Intrinsics (__hadd, bfloat162, ...) are left out.
#pragma once
#include "cuda_on_host.h"

struct __nv_bfloat16 {
    __nv_bfloat16() {}
    explicit __nv_bfloat16(float value) {
        unsigned int bits;
        std::memcpy(&bits, &value, sizeof(bits));
        if (value != value)
            bits = 0x7fff0000u;
        else
            bits += 0x7fffu + ((bits >> 16) & 1u);  // to the nearest, ties to even
        bits_ = static_cast<unsigned short>(bits >> 16);
    }
    operator float() const {
        unsigned int bits = static_cast<unsigned int>(bits_) << 16;
        float value;
        std::memcpy(&value, &bits, sizeof(value));
        return value;
    }
    unsigned short bits_;
};
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits_; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { __nv_bfloat16 value; value.bits_ = bits; return value; }
inline bool __hisnan(__nv_bfloat16 value) { return (value.bits_ & 0x7fffu) > 0x7f80u; }
inline bool __hisinf(__nv_bfloat16 value) { return (value.bits_ & 0x7fffu) == 0x7f80u; }
