#include "base/command_line.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace attnd {
namespace {

using Arguments = std::vector<std::string>;

TEST(CommandLineTest, EmptyValuesBecomeArguments) {
  EXPECT_EQ(WithEmptyValuesApart({"--a=", "--b=1", "--c"}),
            (Arguments{"--a", "", "--b=1", "--c"}));
}

TEST(CommandLineTest, OtherArgumentsStay) {
  const Arguments others = {
      "--a==", "--a=x=", "a=", "-a=", "--=", "--", "", "="};
  EXPECT_EQ(WithEmptyValuesApart(others), others);
}

}  // namespace
}  // namespace attnd
