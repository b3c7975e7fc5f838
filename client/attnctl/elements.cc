#include "client/attnctl/elements.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/half_float.h"

namespace attnd::attnctl {
namespace {

// Rounds to a float towards zero, and sets the last bit of the float if that is
// not exact ("round to odd"). Rounding this float to 16 bits gives the same
// result as rounding the double to 16 bits, because the last bit says on which
// side of a tie the double was. Rounding to the nearest float first would lose
// that.
float RoundedToOdd(double value) {
  const auto nearest = static_cast<float>(value);
  const double back = nearest;
  if (back == value || std::isnan(value)) return nearest;
  auto bits = std::bit_cast<uint32_t>(nearest);
  if (std::abs(back) > std::abs(value)) --bits;
  return std::bit_cast<float>(bits | 1U);
}

}  // namespace

std::vector<float> ToFloats(client::DataType type,
                            std::span<const std::byte> elements) {
  std::vector<float> floats(elements.size() /
                            static_cast<size_t>(client::SizeOf(type)));
  if (floats.empty()) return floats;
  if (type == client::DataType::kF32) {
    std::memcpy(floats.data(), elements.data(), elements.size());
    return floats;
  }
  const bool f16 = type == client::DataType::kF16;
  for (size_t i = 0; i < floats.size(); ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, &elements[i * sizeof(bits)], sizeof(bits));
    floats[i] = f16 ? FloatFromF16(bits) : FloatFromBF16(bits);
  }
  return floats;
}

std::vector<std::byte> FromDoubles(client::DataType type,
                                   std::span<const double> doubles) {
  const auto element_bytes = static_cast<size_t>(client::SizeOf(type));
  std::vector<std::byte> elements(doubles.size() * element_bytes);
  for (size_t i = 0; i < doubles.size(); ++i) {
    std::byte* element = &elements[i * element_bytes];
    if (type == client::DataType::kF32) {
      const auto value = static_cast<float>(doubles[i]);
      std::memcpy(element, &value, sizeof(value));
    } else {
      const float odd = RoundedToOdd(doubles[i]);
      const uint16_t bits = type == client::DataType::kF16 ? F16FromFloat(odd)
                                                           : BF16FromFloat(odd);
      std::memcpy(element, &bits, sizeof(bits));
    }
  }
  return elements;
}

}  // namespace attnd::attnctl
