#include "server/codec/response_codec.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tests/server/message_tools.h"

namespace attnd::server {
namespace {

class ResponseCodecTest : public ::testing::Test {
 protected:
  AttentionAnswer Answer() {
    return {.tensors = {{.field_number = 1,
                         .shape = {2, 3},
                         .data = std::as_bytes(std::span(output_))},
                        {.field_number = 2,
                         .shape = {2},
                         .data = std::as_bytes(std::span(lse_))}},
            .stats_field_number = 3,
            .stats = stats_};
  }
  template <typename Response>
  static Response Parse(const OutgoingMessage& message) {
    Response response;
    EXPECT_TRUE(response.ParseFromString(Join(message)));
    return response;
  }

  std::vector<float> output_ = {1, 2, 3, 4, 5, 6};
  std::vector<float> lse_ = {7, 8};
  RunStats stats_{.isa = Isa::kScalar,
                  .kernel = "tiled",
                  .tile_q = 1,
                  .tile_kv = 2,
                  .threads = 3,
                  .queue_time = std::chrono::nanoseconds(5),
                  .compute_time = std::chrono::nanoseconds(2'000'000'001),
                  .flops = 4,
                  .workspace_bytes = 6};
};

TEST_F(ResponseCodecTest, AllThreeResponsesParse) {
  const OutgoingMessage message =
      EncodeAnswer(Answer(), PayloadKind::kData, nullptr);
  const auto one = Parse<v1::AttentionResponse>(message);
  const auto two = Parse<v1::SelfAttentionResponse>(message);
  const auto three = Parse<v1::CrossAttentionResponse>(message);
  EXPECT_EQ(one.output().SerializeAsString(), two.output().SerializeAsString());
  EXPECT_EQ(one.lse().SerializeAsString(), three.lse().SerializeAsString());
  EXPECT_EQ(one.output().dtype(), v1::DATA_TYPE_F32);
  EXPECT_EQ(one.output().shape_size(), 2);
  ASSERT_EQ(one.output().data().size(), output_.size() * sizeof(float));
  EXPECT_EQ(std::memcmp(one.output().data().data(), output_.data(),
                        one.output().data().size()),
            0);
  EXPECT_EQ(one.lse().shape(0), 2);
  EXPECT_EQ(one.stats().kernel(), "tiled");
  EXPECT_EQ(one.stats().compute_time().seconds(), 2);
  EXPECT_EQ(one.stats().compute_time().nanos(), 1);
}

TEST_F(ResponseCodecTest, GradientsParse) {
  AttentionAnswer answer = Answer();
  answer.tensors.push_back({.field_number = 3, .shape = {0}});
  answer.stats_field_number = 4;
  for (const PayloadKind kind : {PayloadKind::kData, PayloadKind::kValues}) {
    const auto response = Parse<v1::AttentionBackwardResponse>(
        EncodeAnswer(answer, kind, nullptr));
    EXPECT_EQ(response.grad_query().shape(1), 3);
    EXPECT_EQ(response.grad_key().shape(0), 2);
    EXPECT_EQ(response.grad_value().shape(0), 0);
    EXPECT_EQ(response.stats().tile_kv(), 2);
  }
}

TEST_F(ResponseCodecTest, HalvesKeepTheirType) {
  const std::vector<uint16_t> halves = {1, 2, 3};
  AttentionAnswer answer = Answer();
  answer.tensors = {{.field_number = 1,
                     .dtype = DataType::kBF16,
                     .shape = {3},
                     .data = std::as_bytes(std::span(halves))}};
  const auto response = Parse<v1::AttentionResponse>(
      EncodeAnswer(answer, PayloadKind::kData, nullptr));
  EXPECT_EQ(response.output().dtype(), v1::DATA_TYPE_BF16);
  ASSERT_EQ(response.output().data().size(), 6U);
  EXPECT_EQ(response.output().data()[4], 3);
}

TEST_F(ResponseCodecTest, DataIsBorrowedAndKeptAlive) {
  auto owner = std::make_shared<int>(0);
  const std::weak_ptr<int> watch = owner;
  output_.resize(2048);
  AttentionAnswer answer = Answer();
  answer.tensors[0].shape = {2048};
  OutgoingMessage message =
      EncodeAnswer(answer, PayloadKind::kData, std::move(owner));
  EXPECT_EQ(Parse<v1::AttentionResponse>(message).output().data().size(),
            8192U);
  bool borrowed = false;
  for (const OutgoingMessage::Piece& piece : message.pieces()) {
    borrowed |=
        static_cast<const void*>(piece.bytes().data()) == output_.data();
  }
  EXPECT_TRUE(borrowed);
  EXPECT_FALSE(watch.expired());
  message = OutgoingMessage();
  EXPECT_TRUE(watch.expired());
}

TEST_F(ResponseCodecTest, SmallDataIsCopiedIntoOnePieceThatKeepsTheOwner) {
  auto owner = std::make_shared<int>(0);
  const std::weak_ptr<int> watch = owner;
  OutgoingMessage message =
      EncodeAnswer(Answer(), PayloadKind::kData, std::move(owner));
  EXPECT_EQ(message.pieces().size(), 1U);
  EXPECT_FALSE(watch.expired());
  message = OutgoingMessage();
  EXPECT_TRUE(watch.expired());
}

TEST_F(ResponseCodecTest, ValuesAreNumbers) {
  const auto response = Parse<v1::AttentionResponse>(
      EncodeAnswer(Answer(), PayloadKind::kValues, nullptr));
  ASSERT_EQ(response.output().values().values_size(), 6);
  EXPECT_EQ(response.output().values().values(5), 6);
  EXPECT_EQ(response.lse().values().values(1), 8);
}

TEST_F(ResponseCodecTest, ValuesKeepTheirOwnerToo) {
  auto owner = std::make_shared<int>(0);
  const std::weak_ptr<int> watch = owner;
  OutgoingMessage message =
      EncodeAnswer(Answer(), PayloadKind::kValues, std::move(owner));
  EXPECT_FALSE(watch.expired());
  message = OutgoingMessage();
  EXPECT_TRUE(watch.expired());
}

TEST_F(ResponseCodecTest, AnEmptyOutputStillHasItsPayloadAndShape) {
  AttentionAnswer answer = Answer();
  answer.tensors = {{.field_number = 1, .shape = {0, 3}}};
  const auto data = Parse<v1::AttentionResponse>(
      EncodeAnswer(answer, PayloadKind::kData, nullptr));
  EXPECT_EQ(data.output().payload_case(), v1::Tensor::kData);
  EXPECT_EQ(data.output().shape(1), 3);
  EXPECT_FALSE(data.has_lse());
  const auto values = Parse<v1::AttentionResponse>(
      EncodeAnswer(answer, PayloadKind::kValues, nullptr));
  EXPECT_EQ(values.output().payload_case(), v1::Tensor::kValues);
}

}  // namespace
}  // namespace attnd::server
