#include "bench/stream_bandwidth.h"

#include <chrono>
#include <cstdint>
#include <cstring>
#include <vector>

namespace attnd::bench {
namespace {

constexpr int64_t kChunkBytes = int64_t{4} << 20;

// Sums one chunk a task. Integer adds vectorise on every set and are far
// cheaper than the reads that they wait for.
class SumJob : public TileJob {
 public:
  SumJob(const Workspace& buffer, int threads)
      : words_(reinterpret_cast<const uint64_t*>(buffer.data())),
        sums_(static_cast<size_t>(buffer.size_bytes() / kChunkBytes)),
        threads_(threads) {}

  std::vector<Phase> Phases() const override {
    return {{.tasks = static_cast<int64_t>(sums_.size()), .slots = threads_}};
  }
  Slice Run(int64_t /*phase*/, int64_t task, int64_t /*slot*/,
            SliceControl& /*control*/) override {
    constexpr int64_t kWords = kChunkBytes / 8;
    constexpr int64_t kChains = 32;
    const uint64_t* words = words_ + task * kWords;
    uint64_t sums[kChains] = {};
    for (int64_t i = 0; i < kWords; i += kChains) {
      for (int64_t c = 0; c < kChains; ++c) sums[c] += words[i + c];
    }
    uint64_t sum = 0;
    for (const uint64_t part : sums) sum += part;
    sums_[static_cast<size_t>(task)] = sum;
    return Slice::kDone;
  }

  uint64_t Sum() const {
    uint64_t total = 0;
    for (const uint64_t sum : sums_) total += sum;
    return total;
  }

 private:
  const uint64_t* words_;
  std::vector<uint64_t> sums_;
  int threads_;
};

}  // namespace

StreamBandwidth::StreamBandwidth()
    : buffer_(Workspace::Reserve(kBufferBytes).value()) {
  std::memset(buffer_.data(), 1, static_cast<size_t>(kBufferBytes));
}

double StreamBandwidth::Measure(TileScheduler& scheduler) {
  SumJob job(buffer_, scheduler.threads());
  JobTimes times;
  const absl::Status status = scheduler.Run(&job, nullptr, &times);
  // Every byte is 1: a sum that differs was not read.
  constexpr uint64_t kWord = 0x0101010101010101;
  if (!status.ok() ||
      job.Sum() != kWord * static_cast<uint64_t>(kBufferBytes / 8)) {
    return 0;
  }
  return static_cast<double>(kBufferBytes) /
         std::chrono::duration<double>(times.running).count();
}

}  // namespace attnd::bench
