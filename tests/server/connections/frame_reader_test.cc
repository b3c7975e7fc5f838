#include "server/connections/frame_reader.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "tests/server/connections/frames.h"

namespace attnd::server {
namespace {

// Returns as text what a reader reports: "b1" for the begin of a frame of type
// 1, "p3" for three bytes of payload, and "e" for the end of a frame.
std::string Report(FrameReader& reader, const std::string& bytes) {
  std::string report;
  EXPECT_TRUE(reader.Read(
      bytes.data(), bytes.size(),
      [&](const FrameHeader& frame) {
        report += "b" + std::to_string(static_cast<int>(frame.type));
        return true;
      },
      [&](const FrameHeader&, size_t size) {
        report += "p" + std::to_string(size);
        return true;
      },
      [&](const FrameHeader&) {
        report += 'e';
        return true;
      }));
  return report;
}

TEST(FrameReaderTest, ReportsFramesAfterThePreface) {
  FrameReader reader(FrameReader::kClientPrefaceBytes);
  EXPECT_EQ(Report(reader, kPreface + Frame(FrameType::kSettings) +
                               Frame(FrameType::kData, 5, 1, "abc")),
            "b4eb0p3e");
}

TEST(FrameReaderTest, DecodesTheHeader) {
  FrameReader reader(0);
  const std::string bytes =
      Frame(FrameType::kHeaders, 0x25, 0x80000007U, std::string(70000, 'x'));
  FrameHeader seen;
  reader.Read(
      bytes.data(), bytes.size(),
      [&](const FrameHeader& frame) {
        seen = frame;
        return false;
      },
      [](const FrameHeader&, size_t) { return true; },
      [](const FrameHeader&) { return true; });
  EXPECT_EQ(seen.payload_bytes, 70000U);
  EXPECT_EQ(seen.type, FrameType::kHeaders);
  EXPECT_TRUE(seen.has(FrameHeader::kEndStream));
  EXPECT_TRUE(seen.has(FrameHeader::kEndHeaders));
  EXPECT_EQ(seen.stream, 7U) << "the reserved bit is no part of the number";
}

// The reader must report the same frames and the same payload sizes for any
// division of the bytes into pieces.
TEST(FrameReaderTest, SeesTheSameInAnyPieces) {
  constexpr unsigned kSeed = 17;
  std::mt19937 random(kSeed);
  for (int round = 0; round < 200; ++round) {
    std::string bytes = kPreface;
    std::vector<size_t> sizes;
    for (int i = 0; i < 20; ++i) {
      sizes.push_back(random() % 40);
      bytes += Frame(static_cast<FrameType>(random() % 12), 0, 1,
                     std::string(sizes.back(), 'x'));
    }
    FrameReader reader(FrameReader::kClientPrefaceBytes);
    std::vector<size_t> seen;
    size_t ended = 0;
    for (size_t at = 0; at < bytes.size();) {
      const size_t step =
          std::min<size_t>(1 + random() % 30, bytes.size() - at);
      ASSERT_TRUE(reader.Read(
          bytes.data() + at, step,
          [&](const FrameHeader&) {
            seen.push_back(0);
            return true;
          },
          [&](const FrameHeader&, size_t size) {
            seen.back() += size;
            return true;
          },
          [&](const FrameHeader& frame) {
            EXPECT_EQ(seen.back(), frame.payload_bytes);
            ++ended;
            return true;
          }));
      at += step;
    }
    ASSERT_EQ(seen, sizes) << "seed " << kSeed << ", round " << round;
    ASSERT_EQ(ended, sizes.size());
  }
}

}  // namespace
}  // namespace attnd::server
