#include "bench/stream_bandwidth.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

namespace attnd::bench {
namespace {

constexpr int kStreams[] = {1, 2, 4, 8, 16};
constexpr int64_t kAheadBytes[] = {0, 256, 512, 1024, 2048, 4096};
// How often each way is tried.
constexpr int kRounds = 12;

constexpr int64_t kLineBytes = 64;
// Each task reads a chunk. Streams begin at equal distances in it. The number
// is odd so that streams do not fall into the same sets of a cache.
constexpr int64_t kChunkBytes = 16 * 4 * kLineBytes * 1023;
constexpr int64_t kChunks = 128;
constexpr int64_t kBufferBytes = kChunks * kChunkBytes;

// A cache line. The compiler uses the vectors of the instruction set for it.
using Line = uint64_t __attribute__((vector_size(kLineBytes)));

// Adding integers is much cheaper than the reads for which it waits.
template <int kStreams, bool kPrefetches>
inline __attribute__((always_inline)) uint64_t SumStreams(
    const std::byte* chunk, [[maybe_unused]] int64_t ahead_bytes) {
  constexpr int64_t kPart = kChunkBytes / kStreams;
  constexpr int64_t kLines = 4;
  Line sums[kLines] = {};
  for (int64_t i = 0; i < kPart; i += kLines * kLineBytes) {
#pragma GCC unroll 16
    for (int64_t s = 0; s < kStreams; ++s) {
      const std::byte* at = chunk + s * kPart + i;
#pragma GCC unroll 4
      for (int64_t line = 0; line < kLines; ++line) {
        const std::byte* from = at + line * kLineBytes;
        if constexpr (kPrefetches) __builtin_prefetch(from + ahead_bytes);
        sums[line] += *reinterpret_cast<const Line*>(from);
      }
    }
  }
  const Line sum = sums[0] + sums[1] + sums[2] + sums[3];
  uint64_t total = 0;
  for (size_t i = 0; i < sizeof(Line) / sizeof(uint64_t); ++i) total += sum[i];
  return total;
}

template <int kStreams>
inline __attribute__((always_inline)) uint64_t SumStreams(
    const std::byte* chunk, int64_t ahead_bytes) {
  return ahead_bytes == 0 ? SumStreams<kStreams, false>(chunk, 0)
                          : SumStreams<kStreams, true>(chunk, ahead_bytes);
}

#if defined(__x86_64__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
uint64_t
SumChunk(const std::byte* chunk, int streams, int64_t ahead_bytes) {
  switch (streams) {
    case 1:
      return SumStreams<1>(chunk, ahead_bytes);
    case 2:
      return SumStreams<2>(chunk, ahead_bytes);
    case 4:
      return SumStreams<4>(chunk, ahead_bytes);
    case 8:
      return SumStreams<8>(chunk, ahead_bytes);
    case 16:
      return SumStreams<16>(chunk, ahead_bytes);
    default:
      return 0;
  }
}

// Each task adds up one chunk.
class SumJob : public TileJob {
 public:
  // Reads `chunks` chunks, beginning with number `first`. Chunk 0 follows the
  // last one.
  SumJob(const Workspace& buffer, const ReadingWay& way, int64_t first,
         int64_t chunks, int threads)
      : data_(buffer.data()),
        way_(way),
        first_(first),
        sums_(static_cast<size_t>(chunks)),
        threads_(threads) {}

  std::vector<Phase> Phases() const override {
    return {{.tasks = static_cast<int64_t>(sums_.size()), .slots = threads_}};
  }
  Slice Run(int64_t /*phase*/, int64_t task, int64_t /*slot*/,
            SliceControl& /*control*/) override {
    const int64_t chunk = (first_ + task) % kChunks;
    sums_[static_cast<size_t>(task)] =
        SumChunk(data_ + chunk * kChunkBytes, way_.streams, way_.ahead_bytes);
    return Slice::kDone;
  }

  int64_t bytes() const {
    return static_cast<int64_t>(sums_.size()) * kChunkBytes;
  }
  uint64_t Sum() const {
    uint64_t total = 0;
    for (const uint64_t sum : sums_) total += sum;
    return total;
  }

 private:
  const std::byte* data_;
  const ReadingWay way_;
  const int64_t first_;
  std::vector<uint64_t> sums_;
  int threads_;
};

// Returns bytes per second.
double Rate(SumJob job, TileScheduler& scheduler) {
  JobTimes times;
  const absl::Status status = scheduler.Run(&job, nullptr, &times);
  // Every byte is 1. If the sum is wrong, the memory was not read completely.
  constexpr uint64_t kWord = 0x0101010101010101;
  if (!status.ok() ||
      job.Sum() != kWord * static_cast<uint64_t>(job.bytes() / 8)) {
    return 0;
  }
  return static_cast<double>(job.bytes()) /
         std::chrono::duration<double>(times.running).count();
}

std::vector<ReadingWay> AllWays() {
  std::vector<ReadingWay> ways;
  for (const bool huge_pages : {false, true}) {
    for (const int streams : kStreams) {
      for (const int64_t ahead_bytes : kAheadBytes) {
        ways.push_back({streams, ahead_bytes, huge_pages});
      }
    }
  }
  return ways;
}

Workspace Reserve(bool huge_pages) {
  // A pool gives huge pages, if there are any.
  Workspace buffer = WorkspacePool(0).Reserve(kBufferBytes).value();
  const auto size = static_cast<size_t>(kBufferBytes);
  if (!huge_pages) {
    constexpr size_t kPageBytes = 4096;
    void* whole = buffer.data();
    size_t space = size;
    std::align(kPageBytes, size - kPageBytes, whole, space);
    madvise(whole, size - kPageBytes, MADV_NOHUGEPAGE);
  }
  std::memset(buffer.data(), 1, size);
  return buffer;
}

}  // namespace

std::string ReadingWay::Text() const {
  std::string text = std::to_string(streams);
  text += streams == 1 ? " stream, " : " streams, ";
  text += ahead_bytes == 0
              ? "no prefetching"
              : "prefetching " + std::to_string(ahead_bytes) + " bytes ahead";
  text += huge_pages ? ", huge pages" : ", small pages";
  return text;
}

StreamBandwidth::StreamBandwidth()
    : huge_(Reserve(true)), small_(Reserve(false)) {}

// The fastest try of a way counts, because other programs can only slow it
// down. Ways take turns, and successive tries read different parts of a buffer,
// so that no try finds its part in a cache.
ReadingWay StreamBandwidth::FindFastest(TileScheduler& scheduler) const {
  const int threads = scheduler.threads();
  const int64_t chunks = std::clamp<int64_t>(2 * threads, 8, kChunks);
  const std::vector<ReadingWay> ways = AllWays();
  Best best;
  int64_t first = 0;
  for (int round = 0; round < kRounds; ++round) {
    for (const ReadingWay& way : ways) {
      const double rate =
          Rate(SumJob(BufferOf(way), way, first, chunks, threads), scheduler);
      if (rate > best.bytes_per_s) best = {way, rate};
      first = (first + chunks) % kChunks;
    }
  }
  return best.way;
}

double StreamBandwidth::Measure(TileScheduler& scheduler) {
  const int threads = scheduler.threads();
  auto found = best_.find(threads);
  if (found == best_.end()) {
    found = best_.emplace(threads, Best{FindFastest(scheduler)}).first;
  }
  Best& best = found->second;
  const double rate = Rate(
      SumJob(BufferOf(best.way), best.way, 0, kChunks, threads), scheduler);
  best.bytes_per_s = std::max(best.bytes_per_s, rate);
  return rate;
}

Json StreamBandwidth::Records() const {
  Json records = Json::array();
  for (const auto& [threads, best] : best_) {
    records.push_back({{"threads", threads},
                       {"gbytes_per_s", best.bytes_per_s / 1e9},
                       {"way", best.way.Text()}});
  }
  return records;
}

}  // namespace attnd::bench
