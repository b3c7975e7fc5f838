#include "client/attnctl/elements.h"

#include <cstdint>
#include <cstring>

#include "core/half_float.h"

namespace attnd::attnctl {

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

std::vector<std::byte> FromFloats(client::DataType type,
                                  std::span<const float> floats) {
  std::vector<std::byte> elements(floats.size() *
                                  static_cast<size_t>(client::SizeOf(type)));
  if (elements.empty()) return elements;
  if (type == client::DataType::kF32) {
    std::memcpy(elements.data(), floats.data(), elements.size());
    return elements;
  }
  const bool f16 = type == client::DataType::kF16;
  for (size_t i = 0; i < floats.size(); ++i) {
    const uint16_t bits =
        f16 ? F16FromFloat(floats[i]) : BF16FromFloat(floats[i]);
    std::memcpy(&elements[i * sizeof(bits)], &bits, sizeof(bits));
  }
  return elements;
}

}  // namespace attnd::attnctl
