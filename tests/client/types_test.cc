#include "client/types.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace attnd::client {
namespace {

using ::testing::ElementsAre;

TEST(ShapesTest, AreThoseOfTheAnswer) {
  EXPECT_THAT(OutputShape({2, 8, 5, 64}, {2, 2, 7, 32}),
              ElementsAre(2, 8, 5, 32));
  EXPECT_THAT(LseShape({2, 8, 5, 64}), ElementsAre(2, 8, 5));
  EXPECT_THAT(LseShape({2, 5, 8, 64}, Layout::kBshd), ElementsAre(2, 8, 5));
  EXPECT_THAT(LseShape({5, 8, 64}, Layout::kBshd), ElementsAre(8, 5));
  EXPECT_THAT(LseShape({5, 64}, Layout::kBshd), ElementsAre(5));
  EXPECT_TRUE(OutputShape({}, {3}).empty());
  EXPECT_EQ(ElementCount({2, 3, 4}), 24);
  EXPECT_EQ(ElementCount({}), 1);
  EXPECT_EQ(ElementCount({int64_t{1} << 62, 8, 0}), 0);
  EXPECT_EQ(ElementCount({int64_t{1} << 62, 8}), std::nullopt);
  EXPECT_EQ(ElementCount({0, -1}), std::nullopt);
}

TEST(ElementsTest, TellTheirTypeWhereCxxKnowsIt) {
  const std::vector<float> floats(3);
  const std::array<bool, 2> flags{};
  const std::vector<uint8_t> bytes(5);
  const std::vector<uint16_t> halves(7);
  EXPECT_EQ(ConstElements(floats).type(), DataType::kF32);
  EXPECT_EQ(ConstElements(floats).bytes().size(), 12U);
  EXPECT_EQ(ConstElements(flags).type(), DataType::kBool);
  EXPECT_EQ(ConstElements(flags).bytes().size(), 2U);
  EXPECT_EQ(ConstElements(bytes).type(), DataType::kBool);
  const ConstElements bf16(DataType::kBF16, halves);
  EXPECT_EQ(bf16.type(), DataType::kBF16);
  EXPECT_EQ(bf16.bytes().size(), 14U);
  EXPECT_EQ(static_cast<const void*>(bf16.bytes().data()), halves.data());
  // No other type converts to elements implicitly.
  static_assert(!std::is_convertible_v<std::vector<uint16_t>, ConstElements>);
  static_assert(!std::is_convertible_v<std::vector<double>, ConstElements>);
  static_assert(!std::is_convertible_v<std::vector<uint8_t>&, Elements>);
}

}  // namespace
}  // namespace attnd::client
