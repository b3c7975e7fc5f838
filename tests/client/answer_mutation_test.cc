// Changes some bytes of answers, and compares how the client and protobuf read
// them.
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "tests/client/answer_check.h"
#include "tests/support/mutate.h"
#include "tests/support/numbers.h"

namespace attnd::client {
namespace {

TEST(AnswerMutationTest, RepliesAreReadAsProtobufReadsThem) {
  std::mt19937_64 rng(kSeed);
  int accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string text = GoodReply();
    Mutate(GoodReply(), rng, text);
    const AnswerCheck check = CheckReply(text, 1 + rng() % 40);
    ASSERT_EQ(check.accepted, check.good) << "seed " << kSeed << " case " << i;
    if (!check.accepted) continue;
    ASSERT_TRUE(check.equal) << "seed " << kSeed << " case " << i;
    ++accepted;
  }
  EXPECT_GT(accepted, 500);
}

TEST(AnswerMutationTest, StreamsAreReadAsProtobufReadsThem) {
  std::mt19937_64 rng(kSeed);
  const std::vector<std::string> good = GoodStream();
  ASSERT_TRUE(CheckStream(good, 7).accepted);
  int accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    std::vector<std::string> messages = good;
    const size_t at = rng() % messages.size();
    Mutate(good[rng() % good.size()], rng, messages[at]);
    const AnswerCheck check = CheckStream(messages, 1 + rng() % 40);
    if (!check.accepted) continue;  // of two in a message protobuf takes one
    ASSERT_TRUE(check.good && check.equal)
        << "seed " << kSeed << " case " << i << " message " << at;
    ++accepted;
  }
  EXPECT_GT(accepted, 500);
}

}  // namespace
}  // namespace attnd::client
