#include "client/types.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace attnd::client {
namespace {

using ::testing::ElementsAre;

TEST(ShapesTest, AreThoseOfTheAnswer) {
  EXPECT_THAT(OutputShape({2, 8, 5, 64}, {2, 2, 7, 32}),
              ElementsAre(2, 8, 5, 32));
  EXPECT_THAT(LseShape({2, 8, 5, 64}), ElementsAre(2, 8, 5));
  EXPECT_TRUE(OutputShape({}, {3}).empty());
  EXPECT_EQ(ElementCount({2, 3, 4}), 24);
  EXPECT_EQ(ElementCount({}), 1);
  EXPECT_EQ(ElementCount({int64_t{1} << 62, 8, 0}), 0);
  EXPECT_EQ(ElementCount({int64_t{1} << 62, 8}), std::nullopt);
  EXPECT_EQ(ElementCount({0, -1}), std::nullopt);
}

}  // namespace
}  // namespace attnd::client
