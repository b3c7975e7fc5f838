#include "server/payload_copy.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "core/tile_scheduler.h"
#include "tests/server/message_tools.h"

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

// A message that says when it is let go.
ReceivedMessage Watched(const std::string& bytes,
                        const std::shared_ptr<std::atomic<bool>>& gone) {
  auto owner =
      std::shared_ptr<const void>(bytes.data(), [gone](auto) { *gone = true; });
  return {{absl::string_view(), bytes}, std::move(owner)};
}

TEST(PayloadCopyTest, SmallOnesAreCopiedAtOnce) {
  const std::string message = Message(20000);
  std::string one(5000, '\0');
  std::string two(1, '\0');
  PayloadCopy copy;
  copy.Add({.offset = 77, .size_bytes = 5000}, Bytes(one));
  copy.Add({.offset = 19999, .size_bytes = 1}, Bytes(two));
  copy.Add({.offset = 20000, .size_bytes = 0}, nullptr);
  copy.Begin(InSlices(message, 300, 1));
  EXPECT_TRUE(copy.empty());
  EXPECT_EQ(one, message.substr(77, 5000));
  EXPECT_EQ(two, message.substr(19999));
}

TEST(PayloadCopyTest, LargeOnesAreCopiedByWorkersAndKeepTheirMessage) {
  const std::string message = Message((4 << 20) + 333);
  const auto gone = std::make_shared<std::atomic<bool>>(false);
  std::string one((3 << 20) + 5, '\0');
  std::string two(1000, '\0');
  PayloadCopy copy;
  copy.Add({.offset = 111, .size_bytes = (3 << 20) + 5}, Bytes(one));
  copy.Add({.offset = 4 << 20, .size_bytes = 333}, Bytes(two));
  copy.Begin(Watched(message, gone));
  EXPECT_FALSE(copy.empty());
  EXPECT_FALSE(*gone);
  TileScheduler scheduler(3);
  EXPECT_TRUE(scheduler.Run(&copy, nullptr).ok());
  EXPECT_TRUE(one == message.substr(111, one.size()));
  EXPECT_EQ(two.substr(0, 333), message.substr(4 << 20));
  EXPECT_EQ(two.substr(333), std::string(667, '\0'));
  EXPECT_FALSE(*gone);
  copy.Clear();
  EXPECT_TRUE(copy.empty());
  EXPECT_TRUE(*gone);
}

}  // namespace
}  // namespace attnd::server
