// Converts single numbers between float and the bits of the 16-bit formats F16
// and BF16. Conversions to 16 bits round to the nearest number, and ties to
// even. Kernels convert whole SIMD vectors with core/kernels/convert-inl.h
// instead.
#ifndef ATTND_BASE_HALF_FLOAT_H_
#define ATTND_BASE_HALF_FLOAT_H_

#include <bit>
#include <cstdint>

namespace attnd {

// Returns the bits of the nearest IEEE 754 binary16 number. The result is
// infinite if the magnitude of `value` is 65520 or more. A NaN keeps its sign
// but not its payload.
constexpr uint16_t F16FromFloat(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16U) & 0x8000U;
  const uint32_t magnitude = bits & 0x7fffffffU;
  constexpr uint32_t kInfinityBits = 0x7f800000;
  constexpr uint32_t kRoundsToInfinity = 0x477ff000;  // 65520
  constexpr uint32_t kSmallestNormal = 0x38800000;    // 2^-14
  if (magnitude > kInfinityBits) return static_cast<uint16_t>(sign | 0x7e00U);
  if (magnitude >= kRoundsToInfinity) {
    return static_cast<uint16_t>(sign | 0x7c00U);
  }
  if (magnitude < kSmallestNormal) {
    // A subnormal F16 is a multiple of 2^-24, and so is a float from 0.5 to 1.
    // So this addition rounds the number to the right place, and the low bits
    // of the sum are those of the F16.
    const float sum = std::bit_cast<float>(magnitude) + 0.5F;
    return static_cast<uint16_t>(
        sign | (std::bit_cast<uint32_t>(sum) - std::bit_cast<uint32_t>(0.5F)));
  }
  constexpr uint32_t kExponentShift = 112U << 23U;  // 127 - 15
  const uint32_t odd = (magnitude >> 13U) & 1U;
  const uint32_t rounded = magnitude - kExponentShift + 0xfffU + odd;
  return static_cast<uint16_t>(sign | (rounded >> 13U));
}

// Returns the number that the F16 `bits` represent. The conversion is exact.
constexpr float FloatFromF16(uint16_t bits) {
  const uint32_t sign = (uint32_t{bits} & 0x8000U) << 16U;
  const uint32_t exponent = (uint32_t{bits} >> 10U) & 31U;
  const uint32_t fraction = uint32_t{bits} & 1023U;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24F;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | wide << 23U | fraction << 13U);
}

// Returns the bits of the nearest BF16 number. BF16 is the upper half of a
// float. A NaN stays a NaN.
constexpr uint16_t BF16FromFloat(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) {
    return static_cast<uint16_t>((bits >> 16U) | 0x40U);
  }
  return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16U) & 1U)) >> 16U);
}

// Returns the number that the BF16 `bits` represent. The conversion is exact.
constexpr float FloatFromBF16(uint16_t bits) {
  return std::bit_cast<float>(uint32_t{bits} << 16U);
}

}  // namespace attnd

#endif  // ATTND_BASE_HALF_FLOAT_H_
