#include "server/codec/payload_source.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "tests/server/message_tools.h"
#include "tests/support/numbers.h"

namespace attnd::server {
namespace {

std::string Message(size_t size) {
  std::string message(size, '\0');
  for (size_t i = 0; i < size; ++i) {
    message[i] = static_cast<char>(i * 2654435761U >> 13);
  }
  return message;
}

std::byte* Bytes(std::string& text) {
  return reinterpret_cast<std::byte*>(text.data());
}

// Returns a message that sets `gone` when it is released.
ReceivedMessage Watched(const std::string& bytes,
                        const std::shared_ptr<std::atomic<bool>>& gone) {
  auto owner =
      std::shared_ptr<const void>(bytes.data(), [gone](auto) { *gone = true; });
  return {{ReceivedMessage::Slice(), {bytes}}, std::move(owner)};
}

void LoadAll(PayloadSource& source) {
  for (int64_t i = 0; i < source.pieces(); ++i) source.LoadPiece(i);
}

TEST(PayloadSourceTest, LoadsFromAMessageAndFromMemory) {
  const std::string message = Message(20000);
  const std::string memory = Message(3 * kMiB);
  std::string one(5000, '\0');
  std::string two(1, '\0');
  std::string three(3 * kMiB - 1, '\0');
  PayloadSource source;
  EXPECT_TRUE(source.empty());
  source.Add({.offset = 77, .size_bytes = 5000}, Bytes(one));
  source.AddMemory(reinterpret_cast<const std::byte*>(memory.data()) + 1,
                   3 * kMiB - 1, Bytes(three));
  source.Add({.offset = 19999, .size_bytes = 1}, Bytes(two));
  source.Add({.offset = 20000, .size_bytes = 0}, nullptr);
  source.Keep(InSlices(message, 300, 1));
  LoadAll(source);
  EXPECT_EQ(one, message.substr(77, 5000));
  EXPECT_EQ(two, message.substr(19999));
  EXPECT_TRUE(three == memory.substr(1));
}

TEST(PayloadSourceTest, KeepsNoMessageThatItDoesNotNeed) {
  const std::string message = Message(100);
  const auto gone = std::make_shared<std::atomic<bool>>(false);
  std::string to(100, '\0');
  PayloadSource source;
  source.AddMemory(reinterpret_cast<const std::byte*>(message.data()), 100,
                   Bytes(to));
  source.Keep(Watched(message, gone));
  EXPECT_TRUE(*gone);
  LoadAll(source);
  EXPECT_EQ(to, message);
}

TEST(PayloadSourceTest, LoadsInPiecesOrKeysAndValuesByBytes) {
  const std::string message = Message(3 * kMiB + 7);
  const auto gone = std::make_shared<std::atomic<bool>>(false);
  std::string query(kMiB + 5, '\0');
  std::string keys(kMiB, '\0');
  std::string values(kMiB, '\0');
  const PayloadRange query_range{.offset = 1, .size_bytes = kMiB + 5};
  const PayloadRange keys_range{.offset = kMiB + 6, .size_bytes = kMiB};
  const PayloadRange values_range{.offset = 2 * kMiB + 7, .size_bytes = kMiB};
  PayloadSource source;
  source.Add(query_range, Bytes(query));
  source.AddKeysAndValues(keys_range, Bytes(keys), values_range, Bytes(values));
  source.Keep(Watched(message, gone));
  ASSERT_LT(source.pieces_before_keys(), source.pieces());
  for (int64_t i = 0; i < source.pieces_before_keys(); ++i) source.LoadPiece(i);
  EXPECT_TRUE(query == message.substr(1, kMiB + 5));
  EXPECT_TRUE(keys == std::string(kMiB, '\0'));

  source.LoadKeys(100, 5000);
  source.LoadValues(kMiB - 3, 3);
  EXPECT_EQ(keys.substr(0, 6000), std::string(100, '\0') +
                                      message.substr(kMiB + 106, 5000) +
                                      std::string(900, '\0'));
  EXPECT_EQ(values.substr(kMiB - 4), '\0' + message.substr(3 * kMiB + 4));

  for (int64_t i = source.pieces_before_keys(); i < source.pieces(); ++i) {
    source.LoadPiece(i);
  }
  EXPECT_TRUE(keys == message.substr(kMiB + 6, kMiB));
  EXPECT_TRUE(values == message.substr(2 * kMiB + 7));
  EXPECT_FALSE(*gone);
  source.Clear();
  EXPECT_TRUE(source.empty());
  EXPECT_TRUE(*gone);
}

}  // namespace
}  // namespace attnd::server
