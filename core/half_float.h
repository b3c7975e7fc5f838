// 16-bit floats as bits, for whoever makes or reads them one by one: kernels
// that have vectors convert those by themselves. Rounds to the nearest, ties to
// even.
#ifndef ATTND_CORE_HALF_FLOAT_H_
#define ATTND_CORE_HALF_FLOAT_H_

#include <bit>
#include <cstdint>

namespace attnd {

// IEEE 754 binary16. A NaN becomes a quiet one without payload.
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
    // The last bit of 0.5F is worth 2^-24, as that of a subnormal is: the sum
    // rounds where it should.
    const float sum = std::bit_cast<float>(magnitude) + 0.5F;
    return static_cast<uint16_t>(
        sign | (std::bit_cast<uint32_t>(sum) - std::bit_cast<uint32_t>(0.5F)));
  }
  constexpr uint32_t kExponentShift = 112U << 23U;  // 127 - 15
  const uint32_t odd = (magnitude >> 13U) & 1U;
  const uint32_t rounded = magnitude - kExponentShift + 0xfffU + odd;
  return static_cast<uint16_t>(sign | (rounded >> 13U));
}

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

// The upper half of an f32. A NaN stays one.
constexpr uint16_t BF16FromFloat(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) {
    return static_cast<uint16_t>((bits >> 16U) | 0x40U);
  }
  return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16U) & 1U)) >> 16U);
}

constexpr float FloatFromBF16(uint16_t bits) {
  return std::bit_cast<float>(uint32_t{bits} << 16U);
}

}  // namespace attnd

#endif  // ATTND_CORE_HALF_FLOAT_H_
