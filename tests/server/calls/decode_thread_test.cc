#include "server/calls/decode_thread.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <future>
#include <memory>
#include <thread>
#include <vector>

namespace attnd::server {
namespace {

TEST(DecodeThreadTest, RunsWorkInOrderInAThreadOfItsOwn) {
  std::vector<int> order;
  std::vector<std::thread::id> threads;
  {
    DecodeThread thread;
    for (int i = 0; i < 100; ++i) {
      thread.Run(0, [&, i] {
        order.push_back(i);
        threads.push_back(std::this_thread::get_id());
      });
    }
  }
  ASSERT_EQ(order.size(), 100U);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], i);
  EXPECT_NE(threads.front(), std::this_thread::get_id());
  EXPECT_EQ(threads.front(), threads.back());
}

TEST(DecodeThreadTest, TheDestructorRunsWhatWaits) {
  std::promise<void> go;
  std::atomic<int> ran = 0;
  std::thread releaser;
  {
    DecodeThread thread;
    thread.Run(0, [&] { go.get_future().wait(); });
    for (int i = 0; i < 10; ++i) thread.Run(0, [&] { ++ran; });
    EXPECT_EQ(ran, 0);
    releaser = std::thread([&] { go.set_value(); });
  }
  releaser.join();
  EXPECT_EQ(ran, 10);
}

TEST(DecodeThreadTest, CallersTakeTurns) {
  constexpr uint64_t kMany = 1;
  constexpr uint64_t kFew = 2;
  std::promise<void> go;
  std::vector<uint64_t> order;
  {
    DecodeThread thread;
    std::promise<void> begun;
    thread.Run(kMany, [&] {
      begun.set_value();
      go.get_future().wait();
    });
    begun.get_future().wait();
    for (int i = 0; i < 5; ++i) {
      thread.Run(kMany, [&] { order.push_back(kMany); });
    }
    for (int i = 0; i < 2; ++i) {
      thread.Run(kFew, [&] { order.push_back(kFew); });
    }
    go.set_value();
  }
  EXPECT_EQ(order, (std::vector<uint64_t>{kMany, kFew, kMany, kFew, kMany,
                                          kMany, kMany}));
}

TEST(DecodeThreadTest, DropsWorkOnceItRan) {
  const auto held = std::make_shared<int>(1);
  std::promise<int64_t> owners;
  DecodeThread thread;
  thread.Run(0, [held] {});
  thread.Run(0, [&] { owners.set_value(held.use_count()); });
  EXPECT_EQ(owners.get_future().get(), 1);
}

}  // namespace
}  // namespace attnd::server
