#include "tests/support/typed_array.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/reference_attention.h"

namespace attnd::testing {
namespace {

// Returns the bits of a number that F16 represents exactly, or of an infinity
// if it is too large for F16.
uint16_t F16Bits(float value) {
  const auto sign = static_cast<uint16_t>(std::signbit(value) ? 0x8000 : 0);
  const double magnitude = std::abs(double{value});
  if (std::isnan(value)) return 0x7E00;
  if (magnitude > 65504) return sign | 0x7C00;
  // Subnormal numbers are multiples of 2^-24. The sum carries over to the next
  // exponent.
  const int exponent = magnitude < 0x1p-14 ? -14 : std::ilogb(magnitude);
  const double steps = std::ldexp(magnitude, 10 - exponent);
  const int bits = (exponent + 14) * 1024 + static_cast<int>(steps);
  return static_cast<uint16_t>(sign | bits);
}

}  // namespace

float RoundTo(DataType type, float value) {
  if (type == DataType::kF32 || !std::isfinite(value) || value == 0) {
    return value;
  }
  const bool f16 = type == DataType::kF16;
  const int digits = f16 ? 10 : 7;  // without the first digit
  const int lowest = f16 ? -14 : -126;
  const int exponent = std::max(std::ilogb(value), lowest);
  const double rounded =
      std::ldexp(std::nearbyint(std::ldexp(double{value}, digits - exponent)),
                 exponent - digits);
  if (f16 && std::abs(rounded) > 65504) {
    return std::copysign(std::numeric_limits<float>::infinity(), value);
  }
  return static_cast<float>(rounded);
}

bool SameBits(std::span<const float> a, std::span<const float> b) {
  return std::equal(
      a.begin(), a.end(), b.begin(), b.end(), [](float x, float y) {
        return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y);
      });
}

void TypedArray::Set(int64_t index, float value) {
  std::byte* const to = bytes_.data() + index * SizeOf(type_);
  value = RoundTo(type_, value);
  if (type_ == DataType::kF32) {
    std::memcpy(to, &value, sizeof(value));
    return;
  }
  const auto bits =
      type_ == DataType::kF16
          ? F16Bits(value)
          : static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16U);
  std::memcpy(to, &bits, sizeof(bits));
}

void TypedArray::Fill(float value) {
  for (int64_t i = 0; i < size(); ++i) Set(i, value);
}

float TypedArray::operator[](int64_t index) const {
  return static_cast<float>(ReferenceElement(bytes_.data(), type_, index));
}

std::span<float> TypedArray::floats() {
  return {reinterpret_cast<float*>(bytes_.data()),
          bytes_.size() / sizeof(float)};
}

std::span<const float> TypedArray::floats() const {
  return {reinterpret_cast<const float*>(bytes_.data()),
          bytes_.size() / sizeof(float)};
}

}  // namespace attnd::testing
