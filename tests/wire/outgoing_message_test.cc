#include "wire/outgoing_message.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "attnd/v1/attention.pb.h"

namespace attnd {
namespace {

constexpr int kQuery = v1::AttentionRequest::kQueryFieldNumber;
constexpr int kOptions = v1::AttentionRequest::kOptionsFieldNumber;
constexpr int kBias = v1::AttentionOptions::kBiasFieldNumber;
constexpr int kData = v1::Tensor::kDataFieldNumber;

std::string Join(const OutgoingMessage& message) {
  std::string text;
  for (const OutgoingMessage::Piece& piece : message.pieces()) {
    text.append(piece.bytes().data(), piece.bytes().size());
  }
  EXPECT_EQ(text.size(), message.size_bytes());
  return text;
}

std::span<const std::byte> Bytes(const std::string& text) {
  return std::as_bytes(std::span(text));
}

v1::Tensor Header(size_t bytes) {
  v1::Tensor header;
  header.set_dtype(v1::DATA_TYPE_BOOL);
  header.add_shape(static_cast<int64_t>(bytes));
  return header;
}

TEST(OutgoingMessageTest, WritesWhatProtobufWrites) {
  for (const size_t size : {size_t{0}, size_t{1}, kSmallestPieceBytes - 1,
                            kSmallestPieceBytes, size_t{100'000}}) {
    SCOPED_TRACE(size);
    const std::string data(size, 'x');
    v1::AttentionRequest expected;
    *expected.mutable_query() = Header(size);
    expected.mutable_query()->set_data(data);
    expected.mutable_options()->set_block_size(7);
    *expected.mutable_options()->mutable_bias() = expected.query();

    v1::AttentionOptions options;
    options.set_block_size(7);
    OutgoingMessage nested = OutgoingMessage::Of(options);
    nested.AddField(kBias, Header(size), kData, Bytes(data));
    OutgoingMessage message;
    message.Reserve(100);
    message.AddField(kQuery, Header(size), kData, Bytes(data));
    message.AddField(kOptions, nested);
    EXPECT_EQ(Join(message), expected.SerializeAsString());
    // Fields that protobuf encodes as a whole must give the same bytes.
    OutgoingMessage parts;
    parts.AddField(kQuery, expected.query());
    parts.AddField(kOptions, expected.options());
    EXPECT_EQ(Join(parts), expected.SerializeAsString());
    EXPECT_EQ(Join(OutgoingMessage::Of(expected)),
              expected.SerializeAsString());
  }
}

TEST(OutgoingMessageTest, SendsLargeDataFromWhereItIs) {
  const std::string large(kSmallestPieceBytes, 'x');
  const std::string small(kSmallestPieceBytes - 1, 'x');
  OutgoingMessage message;
  message.AddField(kQuery, v1::Tensor(), kData, Bytes(large));
  ASSERT_EQ(message.pieces().size(), 2U);
  EXPECT_EQ(message.pieces()[1].data.data(), large.data());
  message.AddField(kQuery, v1::Tensor(), kData, Bytes(small));
  ASSERT_EQ(message.pieces().size(), 3U);
  EXPECT_TRUE(message.pieces()[2].data.empty());
}

TEST(OutgoingMessageTest, EveryPieceKeepsTheOwner) {
  const std::string large(kSmallestPieceBytes, 'x');
  auto owner = std::make_shared<int>(0);
  const std::weak_ptr<int> watched = owner;
  OutgoingMessage message(std::move(owner));
  message.AddField(kQuery, v1::Tensor(), kData, Bytes(large));
  std::vector<OutgoingMessage::Piece> pieces = std::move(message).TakePieces();
  message = OutgoingMessage();
  ASSERT_EQ(pieces.size(), 2U);
  EXPECT_EQ(watched.use_count(), 2);
  pieces.pop_back();
  EXPECT_EQ(watched.use_count(), 1);
  pieces.pop_back();
  EXPECT_TRUE(watched.expired());
}

TEST(OutgoingMessageTest, CopiesOnlyDataWithoutAnOwner) {
  auto large = std::make_unique<std::string>(kSmallestPieceBytes, 'x');
  const auto owned = std::make_shared<std::string>(kSmallestPieceBytes, 'y');
  OutgoingMessage message;
  message.AddField(kQuery, v1::Tensor(), kData, Bytes(*large));
  message.AddField(kQuery, v1::Tensor(), kData, Bytes(*owned), owned);
  const std::string before = Join(message);
  message.CopyIfBorrowed();
  EXPECT_NE(message.pieces()[1].data.data(), large->data());
  EXPECT_EQ(message.pieces()[3].data.data(), owned->data());
  large.reset();
  EXPECT_EQ(Join(message), before);
}

TEST(HeldPieceTest, LivesUntilTheLastReferenceIsDropped) {
  auto owner = std::make_shared<int>(0);
  const std::weak_ptr<int> watched = owner;
  HeldPiece* const held =
      HeldPiece::Hold({.text = "text", .owner = std::move(owner)}, 2);
  EXPECT_EQ(held->bytes(), "text");
  HeldPiece::Drop(held);
  EXPECT_EQ(held->bytes(), "text");
  EXPECT_FALSE(watched.expired());
  HeldPiece::Drop(held);
  EXPECT_TRUE(watched.expired());
}

}  // namespace
}  // namespace attnd
