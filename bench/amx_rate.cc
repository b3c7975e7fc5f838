#include "bench/amx_rate.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "core/kernels/amx_bf16.h"

namespace attnd::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kDuration = std::chrono::milliseconds(3);
// The product has 32 x 32 scores. Its operands and its result take 20 KiB.
constexpr int64_t kSide = 32;
constexpr int64_t kSteps = 64;  // pairs of bf16

// Computes a product many times, in one task for each worker.
class RateJob : public TileJob {
 public:
  explicit RateJob(int threads) : rates_(static_cast<size_t>(threads)) {}

  std::vector<Phase> Phases() const override {
    const auto threads = static_cast<int64_t>(rates_.size());
    return {{.tasks = threads, .slots = threads}};
  }

  Slice Run(int64_t /*phase*/, int64_t task, int64_t /*slot*/,
            SliceControl& /*control*/) override {
    alignas(64) float rows[kSide * kSteps] = {};
    alignas(64) float columns[kSide * kSteps] = {};
    alignas(64) float scores[kSide * kSide];
    const AmxTiles tiles;
    const auto start = Clock::now();
    std::chrono::duration<double> spent{};
    int64_t products = 0;
    do {
      for (int i = 0; i < 100; ++i, ++products) {
        AmxScores<1>(kSide, 2,
                     {.first = rows, .stride = kSteps, .term_words = 0},
                     columns, kSteps, scores, kSide);
      }
      spent = Clock::now() - start;
    } while (spent < kDuration);
    rates_[static_cast<size_t>(task)] =
        static_cast<double>(products * kSide * kSide * kSteps * 4) /
        spent.count();
    return Slice::kDone;
  }

  double Slowest() const {
    return *std::min_element(rates_.begin(), rates_.end());
  }

 private:
  std::vector<double> rates_;  // each is written only by its task
};

}  // namespace

double MeasureAmxRate(TileScheduler& scheduler) {
  if (!HasAmxBf16()) return 0;
  RateJob job(scheduler.threads());
  scheduler.Run(&job, nullptr).IgnoreError();
  return job.Slowest();
}

}  // namespace attnd::bench
