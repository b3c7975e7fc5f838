#include "wire/received_message.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <memory>
#include <string>
#include <utility>

#include "attnd/v1/attention.pb.h"
#include "tests/support/in_blocks.h"

namespace attnd {
namespace {

TEST(ReceivedMessageTest, CopiesAnyRange) {
  const std::string text = "0123456789abcdef";
  for (size_t slice = 1; slice <= text.size(); ++slice) {
    const ReceivedMessage message = InBlocks(text, slice);
    ASSERT_EQ(message.size_bytes(), static_cast<int64_t>(text.size()));
    for (size_t begin = 0; begin <= text.size(); ++begin) {
      for (size_t size = 0; begin + size <= text.size(); ++size) {
        std::string copy(size, '\0');
        message.CopyTo(
            {static_cast<int64_t>(begin), static_cast<int64_t>(size)},
            reinterpret_cast<std::byte*>(copy.data()));
        ASSERT_EQ(copy, text.substr(begin, size)) << slice << " " << begin;
      }
    }
  }
  EXPECT_EQ(ReceivedMessage().size_bytes(), 0);
}

TEST(ReceivedMessageTest, CopiesAcrossEmptySlices) {
  const ReceivedMessage message({{{}}, {"01"}, {{}}, {{}}, {"23"}, {{}}},
                                nullptr);
  std::string copy(4, '\0');
  message.CopyTo({0, 4}, reinterpret_cast<std::byte*>(copy.data()));
  EXPECT_EQ(copy, "0123");
}

TEST(ReceivedMessageTest, KeepsTheOwner) {
  auto owner = std::make_shared<int>(0);
  const std::weak_ptr<int> watched = owner;
  ReceivedMessage message({}, std::move(owner));
  EXPECT_FALSE(watched.expired());
  message = ReceivedMessage();
  EXPECT_TRUE(watched.expired());
}

TEST(ReceivedStreamTest, LetsProtobufReadAcrossSlices) {
  v1::Tensor sent;
  sent.set_dtype(v1::DATA_TYPE_F16);
  sent.add_shape(300);
  sent.set_data(std::string(50, 'x'));
  const std::string text = sent.SerializeAsString();
  for (size_t slice = 1; slice <= text.size(); ++slice) {
    const ReceivedMessage message = InBlocks(text, slice);
    ReceivedStream stream(message);
    v1::Tensor got;
    ASSERT_TRUE(got.ParseFromZeroCopyStream(&stream));
    EXPECT_EQ(got.SerializeAsString(), text);
    EXPECT_EQ(stream.ByteCount(), message.size_bytes());
  }
}

TEST(ReceivedStreamTest, SkipsAndBacksUp) {
  const ReceivedMessage message = InBlocks("0123456789", 4);
  ReceivedStream stream(message);
  const void* data = nullptr;
  int size = 0;
  ASSERT_TRUE(stream.Skip(5));
  ASSERT_TRUE(stream.Next(&data, &size));
  EXPECT_EQ(absl::string_view(static_cast<const char*>(data),
                              static_cast<size_t>(size)),
            "567");
  stream.BackUp(2);
  EXPECT_EQ(stream.ByteCount(), 6);
  EXPECT_TRUE(stream.Skip(4));
  EXPECT_FALSE(stream.Skip(1));
  EXPECT_FALSE(stream.Next(&data, &size));
}

}  // namespace
}  // namespace attnd
