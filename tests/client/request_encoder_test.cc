// Compares requests that the client encodes itself with what protobuf reads
// from them.
#include "client/request_encoder.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "google/protobuf/util/message_differencer.h"
#include "tests/client/answer_check.h"
#include "wire/outgoing_message.h"

namespace attnd::client {
namespace {

using google::protobuf::util::MessageDifferencer;

std::string Joined(const OutgoingMessage& message) {
  std::string text;
  for (const OutgoingMessage::Piece& piece : message.pieces()) {
    text.append(piece.bytes().data(), piece.bytes().size());
  }
  EXPECT_EQ(text.size(), message.size_bytes());
  return text;
}

std::vector<float> Count(size_t size) {
  std::vector<float> floats(size);
  std::iota(floats.begin(), floats.end(), 0.0f);
  return floats;
}

TEST(RequestEncoderTest, WritesWhatProtobufWouldWrite) {
  for (const size_t size : {0u, 1u, 1023u, 1024u, 100000u}) {
    const std::vector<float> elements = Count(size);
    const ConstTensor tensor{elements, {static_cast<int64_t>(size), 1}};
    OutgoingMessage message;
    AddTensor(v1::AttentionRequest::kQueryFieldNumber, tensor, &message);
    AddTensor(v1::AttentionRequest::kValueFieldNumber, tensor, &message);
    v1::AttentionOptions asked;
    asked.set_return_lse(true);
    AddOptions(v1::AttentionRequest::kOptionsFieldNumber,
               {.block_size = 7, .bias = tensor, .mask = tensor}, asked,
               &message);

    v1::AttentionRequest expected;
    v1::Tensor* const query = expected.mutable_query();
    query->set_dtype(v1::DATA_TYPE_F32);
    query->add_shape(static_cast<int64_t>(size));
    query->add_shape(1);
    query->set_data(Bytes(elements));
    *expected.mutable_value() = *query;
    v1::AttentionOptions* const options = expected.mutable_options();
    options->set_return_lse(true);
    options->set_block_size(7);
    *options->mutable_bias() = *query;
    *options->mutable_mask() = *query;
    v1::AttentionRequest parsed;
    ASSERT_TRUE(parsed.ParseFromString(Joined(message)));
    EXPECT_TRUE(MessageDifferencer::Equals(parsed, expected)) << size;
  }
}

TEST(RequestEncoderTest, CopiesNoLargeElementsAndKeepsTheirOwner) {
  auto elements = std::make_shared<std::vector<float>>(Count(4096));
  const std::weak_ptr<std::vector<float>> watched = elements;
  const float* const data = elements->data();
  OutgoingMessage message;
  AddTensor(1, {ConstElements(*elements).OwnedBy(elements), {4096}}, &message);
  elements.reset();
  EXPECT_FALSE(watched.expired());
  EXPECT_EQ(message.pieces().back().bytes().data(),
            reinterpret_cast<const char*>(data));
  message = OutgoingMessage();
  EXPECT_TRUE(watched.expired());
}

}  // namespace
}  // namespace attnd::client
