#include "client/attnctl/elements.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "tests/support/numbers.h"

namespace attnd::attnctl {
namespace {

using client::DataType;

std::vector<uint16_t> Rounded(DataType type, const std::vector<float>& floats) {
  const std::vector<std::byte> bytes = FromFloats(type, floats);
  std::vector<uint16_t> bits(bytes.size() / sizeof(uint16_t));
  std::memcpy(bits.data(), bytes.data(), bytes.size());
  return bits;
}

float Widened(DataType type, uint16_t bits) {
  return ToFloats(type, std::as_bytes(std::span(&bits, 1))).at(0);
}

class RoundingHalvesTest : public testing::TestWithParam<DataType> {};

// Every half there is, and every float in the middle of two of them.
TEST_P(RoundingHalvesTest, RoundsToTheNearestAndTiesToEven) {
  const DataType type = GetParam();
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = Widened(type, half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(Widened(type, Rounded(type, {value})[0])));
      continue;
    }
    ASSERT_EQ(Rounded(type, {value})[0], half) << bits;
    const auto next = static_cast<uint16_t>(bits + 1);
    const float neighbour = Widened(type, next);
    if (!std::isfinite(value) || !std::isfinite(neighbour)) continue;
    const float middle = value / 2 + neighbour / 2;
    if (middle == value || middle == neighbour) continue;  // no float between
    const uint16_t even = half % 2 == 0 ? half : next;
    ASSERT_EQ(Rounded(type, {middle})[0], even) << bits;
    ASSERT_EQ(Rounded(type, {std::nextafter(middle, value)})[0], half) << bits;
    ASSERT_EQ(Rounded(type, {std::nextafter(middle, neighbour)})[0], next)
        << bits;
  }
}

INSTANTIATE_TEST_SUITE_P(Halves, RoundingHalvesTest,
                         testing::Values(DataType::kF16, DataType::kBF16));

TEST(RoundingTest, KnownNumbers) {
  EXPECT_THAT(Rounded(DataType::kF16, {1, -2, 65504, 65519, 65520, -kInfinity,
                                       0x1p-25F, 0x1.8p-25F}),
              testing::ElementsAre(0x3c00, 0xc000, 0x7bff, 0x7bff, 0x7c00,
                                   0xfc00, 0, 1));
  EXPECT_THAT(Rounded(DataType::kBF16, {1, -2, 3.4e38F, kInfinity}),
              testing::ElementsAre(0x3f80, 0xc000, 0x7f80, 0x7f80));
  EXPECT_TRUE(std::isnan(
      Widened(DataType::kBF16, Rounded(DataType::kBF16, {std::nanf("1")})[0])));
  EXPECT_THAT(ToFloats(DataType::kF32, FromFloats(DataType::kF32, {{1, 2}})),
              testing::ElementsAre(1, 2));
}

}  // namespace
}  // namespace attnd::attnctl
