// What the client reads from an answer, compared with what protobuf reads.
#include "client/answer_reader.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "client/error_details.h"
#include "tests/client/answer_check.h"
#include "tests/support/in_blocks.h"

namespace attnd::client {
namespace {

std::vector<float> Count(size_t size) {
  std::vector<float> floats(size);
  std::iota(floats.begin(), floats.end(), 0.0f);
  return floats;
}

// What the client read from an answer.
struct Read {
  std::vector<float> output;
  std::vector<float> lse;
  absl::StatusOr<AttentionReply> reply;
};
Read ReadIn(const std::string& text, size_t outputs, size_t block_bytes) {
  Read read{.output = std::vector<float>(outputs, -1),
            .lse = std::vector<float>(2, -1),
            .reply = AttentionReply()};
  read.reply = ReadReply(
      InBlocks(text, block_bytes),
      ForwardAnswer{.outputs = {.output = read.output, .lse = read.lse},
                    .output_shape = {static_cast<int64_t>(outputs)},
                    .lse_shape = {2}});
  return read;
}

v1::AttentionResponse GoodResponse(size_t outputs) {
  v1::AttentionResponse response;
  v1::Tensor* const output = response.mutable_output();
  output->set_dtype(v1::DATA_TYPE_F32);
  output->add_shape(static_cast<int64_t>(outputs));
  output->set_data(Bytes(Count(outputs)));
  v1::Tensor* const lse = response.mutable_lse();
  lse->set_dtype(v1::DATA_TYPE_F32);
  lse->add_shape(2);
  lse->set_data(Bytes({3, 4}));
  response.mutable_stats()->set_isa("avx2");
  response.mutable_stats()->set_flops(5);
  return response;
}

TEST(ReadReplyTest, ReadsAcrossBlocksThatEndAnywhere) {
  const std::string text = GoodResponse(9).SerializeAsString();
  for (size_t block = 1; block <= text.size(); ++block) {
    const Read read = ReadIn(text, 9, block);
    ASSERT_TRUE(read.reply.ok()) << read.reply.status();
    EXPECT_EQ(read.output, Count(9));
    EXPECT_EQ(read.lse, std::vector<float>({3, 4}));
    EXPECT_EQ(read.reply->output_shape, std::vector<int64_t>({9}));
    EXPECT_EQ(read.reply->stats.isa, "avx2");
  }
}

// An answer of another shape is wrong even if it has as many elements.
TEST(ReadReplyTest, RefusesOtherShapes) {
  for (const std::vector<int64_t>& shape :
       std::vector<std::vector<int64_t>>{{9}, {1, 9}, {3, 3}, {9, 1}, {}}) {
    v1::AttentionResponse response = GoodResponse(9);
    response.mutable_output()->mutable_shape()->Assign(shape.begin(),
                                                       shape.end());
    const auto reply = ReadIn(response.SerializeAsString(), 9, 64).reply;
    EXPECT_EQ(reply.ok(), shape.size() == 1) << reply.status();
    if (reply.ok()) continue;
    EXPECT_EQ(DetailsOf(reply.status()).reason, "BAD_RESPONSE");
  }
  v1::AttentionResponse response = GoodResponse(9);
  response.mutable_lse()->add_shape(1);
  const auto reply = ReadIn(response.SerializeAsString(), 9, 64).reply;
  EXPECT_EQ(reply.status().message(),
            "lse: expected an answer of shape [2], got [2, 1]");
}

TEST(ReadReplyTest, TakesFieldsInAnyOrderAndPassesOverUnknownOnes) {
  const v1::AttentionResponse response = GoodResponse(3);
  v1::AttentionResponse stats;
  *stats.mutable_stats() = response.stats();
  v1::AttentionResponse tensors = response;
  tensors.clear_stats();
  // Data before type and shape, then a field 99 of each wire type.
  v1::Tensor data, shape = response.output();
  data.set_data(response.output().data());
  shape.clear_payload();
  v1::AttentionResponse lse;
  *lse.mutable_lse() = response.lse();
  v1::AttentionResponse first, second;
  *first.mutable_output() = data;
  *second.mutable_output() = shape;
  const std::string output =
      first.SerializeAsString() + second.SerializeAsString();
  const std::string unknown(
      "\x98\x06\x01\x9d\x06....\x99\x06........\x9a\x06\x01.", 23);
  const std::string text = stats.SerializeAsString() + unknown +
                           lse.SerializeAsString() + output + unknown;
  const Read read = ReadIn(text, 3, 5);
  ASSERT_TRUE(read.reply.ok()) << read.reply.status();
  EXPECT_EQ(read.output, Count(3));
  EXPECT_EQ(read.reply->stats.flops, 5);
}

TEST(ReadReplyTest, RefusesEveryTruncation) {
  const std::string text = GoodResponse(9).SerializeAsString();
  for (size_t size = 0; size < text.size(); ++size) {
    const Read read = ReadIn(text.substr(0, size), 9, 7);
    v1::AttentionResponse parsed;
    const bool whole = parsed.ParseFromString(text.substr(0, size)) &&
                       parsed.has_lse() && parsed.lse().data().size() == 8;
    EXPECT_EQ(read.reply.ok(), whole) << size;
    if (whole) continue;
    EXPECT_EQ(DetailsOf(read.reply.status()).reason, "BAD_RESPONSE") << size;
  }
}

}  // namespace
}  // namespace attnd::client
