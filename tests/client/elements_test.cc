#include "client/attnctl/elements.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "tests/support/numbers.h"

namespace attnd::attnctl {
namespace {

using client::DataType;

std::vector<uint16_t> Rounded(DataType type,
                              const std::vector<double>& doubles) {
  const std::vector<std::byte> bytes = FromDoubles(type, doubles);
  std::vector<uint16_t> bits(bytes.size() / sizeof(uint16_t));
  std::memcpy(bits.data(), bytes.data(), bytes.size());
  return bits;
}

float Widened(DataType type, uint16_t bits) {
  return ToFloats(type, std::as_bytes(std::span(&bits, 1))).at(0);
}

class RoundingHalvesTest : public testing::TestWithParam<DataType> {};

// Tests every 16-bit number, and every double in the middle of two of them. It
// also tests the next doubles on both sides. They are so close to the middle
// that rounding to a float first would give another result.
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
    const double middle = (double{value} + double{neighbour}) / 2;
    if (middle == 0) continue;  // the numbers are the two zeros
    const uint16_t even = half % 2 == 0 ? half : next;
    ASSERT_EQ(Rounded(type, {middle})[0], even) << bits;
    ASSERT_EQ(Rounded(type, {std::nextafter(middle, double{value})})[0], half)
        << bits;
    ASSERT_EQ(Rounded(type, {std::nextafter(middle, double{neighbour})})[0],
              next)
        << bits;
  }
}

// Computes the expected number exactly in double precision, as a multiple of
// the weight of the last bit.
TEST_P(RoundingHalvesTest, RoundsEveryDoubleOnce) {
  const DataType type = GetParam();
  const bool f16 = type == DataType::kF16;
  const int fraction_bits = f16 ? 10 : 7;
  const int least_exponent = f16 ? -14 : -126;
  const double largest = f16 ? 65504 : 0x1.fep127;
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < 200000; ++i) {
    const int exponent = static_cast<int>(rng() % 300) - 155;
    const double value =
        std::ldexp(1 + static_cast<double>(rng() >> 12) * 0x1p-52, exponent);
    const double last_bit =
        std::ldexp(1, std::max(exponent, least_exponent) - fraction_bits);
    double expected = std::nearbyint(value / last_bit) * last_bit;
    if (expected > largest) {
      expected = std::numeric_limits<double>::infinity();
    }
    ASSERT_EQ(Widened(type, Rounded(type, {value})[0]), expected) << value;
    ASSERT_EQ(Widened(type, Rounded(type, {-value})[0]), -expected) << value;
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
  EXPECT_THAT(Rounded(DataType::kF16, {1e300, -1e-300, -0.0}),
              testing::ElementsAre(0x7c00, 0x8000, 0x8000));
  EXPECT_THAT(Rounded(DataType::kBF16, {-1e300, 1e-300, 0x1.8p-134}),
              testing::ElementsAre(0xff80, 0, 1));
}

TEST(RoundingTest, Floats) {
  const std::vector<double> doubles = {0.1,  1 + 0x1p-24, 1 + 0x1p-24 + 0x1p-52,
                                       1e39, -1e39,       0x1p-150,
                                       -0.0, std::nan("")};
  const std::vector<float> floats =
      ToFloats(DataType::kF32, FromDoubles(DataType::kF32, doubles));
  EXPECT_THAT(floats,
              testing::ElementsAre(0.1F, 1, 1 + 0x1p-23F, kInfinity, -kInfinity,
                                   0, -0.0F, testing::IsNan()));
  EXPECT_TRUE(std::signbit(floats[6]));
}

}  // namespace
}  // namespace attnd::attnctl
