// Tests how the client reads the messages of AttentionStream's answer.
#include "client/attention_exchange.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "client/error_details.h"
#include "tests/client/answer_check.h"
#include "tests/support/in_blocks.h"

namespace attnd::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Reply = absl::StatusOr<AttentionReply>;
using Response = v1::AttentionStreamResponse;

Response Header() {
  Response message;
  v1::AttentionResponse& header = *message.mutable_header();
  header.mutable_output()->set_dtype(v1::DATA_TYPE_F32);
  header.mutable_output()->add_shape(1);
  header.mutable_output()->add_shape(3);
  header.mutable_lse()->set_dtype(v1::DATA_TYPE_F32);
  header.mutable_lse()->add_shape(1);
  return message;
}

Response Chunk(v1::TensorRole role, int64_t offset_bytes,
               const std::string& data) {
  Response message;
  message.mutable_chunk()->set_role(role);
  message.mutable_chunk()->set_offset_bytes(offset_bytes);
  message.mutable_chunk()->set_data(data);
  return message;
}

Response Stats() {
  Response message;
  message.mutable_stats()->set_isa("avx2");
  return message;
}

// Returns the answer to the calls below.
std::vector<Response> Good() {
  return {Header(), Chunk(v1::TENSOR_ROLE_OUTPUT, 0, Bytes({1, 2})),
          Chunk(v1::TENSOR_ROLE_LSE, 0, Bytes({7})),
          Chunk(v1::TENSOR_ROLE_OUTPUT, 8, Bytes({3})), Stats()};
}

std::vector<std::string> Texts(const std::vector<Response>& messages) {
  std::vector<std::string> texts;
  texts.reserve(messages.size());
  for (const Response& message : messages) {
    texts.push_back(message.SerializeAsString());
  }
  return texts;
}

// Makes a call for three outputs and one lse.
class AttentionExchangeTest : public testing::Test {
 protected:
  // In blocks that end anywhere.
  Reply Read(const std::vector<std::string>& messages, size_t block_bytes = 5) {
    output_.assign(3, -1);
    lse_.assign(1, -1);
    const AttentionInputs inputs{
        .query = {{}, {1, 2}}, .key = {{}, {7, 2}}, .value = {{}, {7, 3}}};
    AttentionExchange exchange(inputs, {}, {}, {.output = output_, .lse = lse_},
                               1 << 20);
    for (const std::string& text : messages) {
      if (exchange.OnResponse(InBlocks(text, block_bytes))) continue;
      // As RpcChannel ends it.
      return exchange.Reply(absl::CancelledError());
    }
    return exchange.Reply(absl::OkStatus());
  }
  Reply Read(const std::vector<Response>& messages) {
    return Read(Texts(messages));
  }

  void ExpectBad(const std::vector<Response>& messages, const char* text) {
    const Reply reply = Read(messages);
    EXPECT_EQ(DetailsOf(reply.status()).reason, "BAD_RESPONSE") << text;
    EXPECT_THAT(std::string(reply.status().message()), HasSubstr(text));
  }

  std::vector<float> output_;
  std::vector<float> lse_;
};

TEST_F(AttentionExchangeTest, ReadsAcrossBlocksThatEndAnywhere) {
  for (size_t block_bytes = 1; block_bytes < 40; ++block_bytes) {
    const Reply reply = Read(Texts(Good()), block_bytes);
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_THAT(output_, ElementsAre(1, 2, 3));
    EXPECT_THAT(lse_, ElementsAre(7));
    EXPECT_THAT(reply->output_shape, ElementsAre(1, 3));
    EXPECT_THAT(reply->lse_shape, ElementsAre(1));
    EXPECT_EQ(reply->stats.isa, "avx2");
  }
}

TEST_F(AttentionExchangeTest, RefusesAnAnswerThatLacksAMessage) {
  const char* const lacks[] = {"header", "output", "lse", "output", "stats"};
  for (size_t i = 0; i < Good().size(); ++i) {
    std::vector<Response> messages = Good();
    messages.erase(messages.begin() + static_cast<std::ptrdiff_t>(i));
    ExpectBad(messages, lacks[i]);
  }
}

TEST_F(AttentionExchangeTest, RefusesAnEmptyAnswerWithoutItsHeader) {
  AttentionExchange exchange({}, {}, {}, {.output = {}}, 1 << 20);
  EXPECT_TRUE(exchange.OnResponse(InBlocks(Stats().SerializeAsString(), 5)));
  EXPECT_EQ(DetailsOf(exchange.Reply(absl::OkStatus()).status()).reason,
            "BAD_RESPONSE");
}

// Returns whether a call may be made again after it has received the first
// `received` messages of its answer. `x` is its query, and `output` receives
// the answer.
bool MayRestart(const std::vector<float>& x, std::span<float> output,
                size_t received) {
  const AttentionInputs inputs{
      .query = {x, {1, 3}}, .key = {{}, {0, 3}}, .value = {{}, {0, 3}}};
  std::vector<float> lse(1);
  AttentionExchange exchange(inputs, {}, {}, {.output = output, .lse = lse},
                             1 << 20);
  const std::vector<std::string> texts = Texts(Good());
  for (const std::string& text : std::span(texts).first(received)) {
    EXPECT_TRUE(exchange.OnResponse(InBlocks(text, 5)));
  }
  return exchange.Restart();
}

TEST_F(AttentionExchangeTest, IsNotMadeAgainOnceItHasOverwrittenAnInput) {
  std::vector<float> x(6);
  std::vector<float> apart(3);
  EXPECT_TRUE(MayRestart(x, apart, 4));
  // The header does not write to the output, but the first chunk does.
  EXPECT_TRUE(MayRestart(x, std::span(x).first(3), 1));
  EXPECT_FALSE(MayRestart(x, std::span(x).first(3), 2));
  EXPECT_FALSE(MayRestart(x, std::span(x).last(3), 2));
}

TEST_F(AttentionExchangeTest, RefusesHeadersThatDoNotFit) {
  std::vector<Response> messages = Good();
  v1::Tensor& output = *messages[0].mutable_header()->mutable_output();
  output.set_dtype(v1::DATA_TYPE_F16);
  ExpectBad(messages, "output");
  output.set_dtype(v1::DATA_TYPE_F32);
  // With four bytes per element, the largest count does not fit into an int64.
  for (const int64_t count :
       {int64_t{-3}, int64_t{2}, int64_t{4}, int64_t{1} << 62}) {
    output.set_shape(1, count);
    ExpectBad(messages, "output");
  }
  output.clear_shape();
  output.add_shape(3);
  output.add_shape(1);
  ExpectBad(messages, "output: expected an answer of shape [1, 3], got [3, 1]");
}

TEST_F(AttentionExchangeTest, RefusesChunksThatDoNotFit) {
  ExpectBad({Header(), Chunk(v1::TENSOR_ROLE_QUERY, 0, "1234"), Stats()},
            "the server sent a chunk of role 1, which the client did not "
            "request");
  const auto role = v1::TENSOR_ROLE_OUTPUT;
  for (const Response& chunk : {Chunk(role, 4, "1234"), Chunk(role, -4, "1234"),
                                Chunk(role, 0, std::string(13, ' '))}) {
    ExpectBad({Header(), chunk, Stats()},
              "output: expected a chunk at offset 0 with at most 12 bytes, got "
              "one at offset ");
  }
}

TEST_F(AttentionExchangeTest, RefusesTwoMessagesInOne) {
  const std::vector<std::string> good = Texts(Good());
  for (const size_t other : {size_t{0}, size_t{1}, size_t{3}, size_t{4}}) {
    std::vector<std::string> messages = good;
    messages[1] = good[1] + good[other];
    EXPECT_EQ(DetailsOf(Read(messages).status()).reason, "BAD_RESPONSE");
  }
}

TEST_F(AttentionExchangeTest, RefusesEveryTruncation) {
  const std::vector<std::string> good = Texts(Good());
  for (size_t i = 0; i < good.size(); ++i) {
    for (size_t size = 0; size < good[i].size(); ++size) {
      std::vector<std::string> messages = good;
      messages[i].resize(size);
      const Reply reply = Read(messages);
      EXPECT_EQ(DetailsOf(reply.status()).reason, "BAD_RESPONSE")
          << i << " of " << size << " bytes";
    }
  }
  // This chunk is empty, but says that it is longer than its message.
  std::vector<std::string> messages = good;
  messages.insert(messages.begin() + 1, std::string("\x12\x09\x08\x06", 4));
  EXPECT_FALSE(Read(messages).ok());
}

}  // namespace
}  // namespace attnd::client
