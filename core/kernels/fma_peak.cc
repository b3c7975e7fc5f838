// Runs chains of dependent multiply-adds that stay in registers from start to
// end. There are more chains than the latency of a multiply-add in cycles times
// the number of units. Each chain has a value of its own, and all numbers come
// from where the compiler cannot see them. So it can neither merge two chains
// nor compute any of them beforehand.
#include "core/fma_peak.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <thread>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/kernels/fma_peak.cc"
#include "hwy/foreach_target.h"
// Highway must come after foreach_target.
#include "core/kernels/targets.h"
#include "hwy/highway.h"

// The chains stay in registers only if the compiler unrolls every loop over
// them.
#undef ATTND_UNROLL_CHAINS
#define ATTND_UNROLL_CHAINS HWY_PRAGMA(GCC unroll 32)

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR
// The limit of "scalar" code is what the compiler makes of it, and every
// baseline has vectors of four floats.
using Vec = float __attribute__((vector_size(16)));
constexpr int64_t kLanes = 4;
inline Vec Spread(float x) { return Vec{x, x, x, x}; }
inline Vec Step(Vec a, Vec b, Vec c) { return a * b + c; }
inline float FirstOf(Vec x) { return x[0]; }
#else
namespace hn = hwy::HWY_NAMESPACE;
using Floats = hn::ScalableTag<float>;
using Vec = hn::Vec<Floats>;
constexpr int64_t kLanes = hn::MaxLanes(Floats());
HWY_INLINE Vec Spread(float x) { return hn::Set(Floats(), x); }
HWY_INLINE Vec Step(Vec a, Vec b, Vec c) { return hn::MulAdd(a, b, c); }
HWY_INLINE float FirstOf(Vec x) { return hn::GetLane(x); }
#endif

// There are as many chains as a microkernel has sums, so that they fit in
// registers. The scalar set has 16 vector registers, too, so it gets at least
// 12 chains.
constexpr Geometry kGeometry = GeometryOf(IsaOfTarget(HWY_TARGET));
constexpr auto kChains = static_cast<size_t>(
    std::max<int64_t>(12, kGeometry.rows* kGeometry.vectors));

}  // namespace

// Runs `steps` multiply-adds in every chain. Returns how many operations that
// were. `seed` is read and written, so that the compiler keeps the chains.
// Values move from [0, 24] towards 1, so nothing overflows or becomes denormal.
int64_t RunChains(int64_t steps, volatile float* seed) {
  const Vec factor = Spread(*seed);
  const Vec addend = Spread(1.0F - *seed);
  Vec x[kChains];
  ATTND_UNROLL_CHAINS
  for (size_t i = 0; i < kChains; ++i) {
    x[i] = Spread(*seed + static_cast<float>(i));
  }
  for (int64_t step = 0; step < steps; ++step) {
    ATTND_UNROLL_CHAINS
    for (Vec& chain : x) chain = Step(chain, factor, addend);
  }
  float sum = 0;
  ATTND_UNROLL_CHAINS
  for (const Vec& chain : x) sum += FirstOf(chain);
  *seed = sum > 0 ? 0.5F : 0.25F;
  return steps * static_cast<int64_t>(kChains) * kLanes * 2;
}

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace attnd {
namespace {

using Clock = std::chrono::steady_clock;

// What a thread has measured so far.
struct Share {
  int64_t operations = 0;
  std::chrono::nanoseconds busy{0};

  double Rate() const {
    return busy.count() > 0 ? static_cast<double>(operations) /
                                  std::chrono::duration<double>(busy).count()
                            : 0;
  }
};

// Adds measurements to `share` until it was busy for `duration` or `stop`
// returns true.
template <typename Stop>
void Measure(Isa isa, std::chrono::nanoseconds duration, Stop stop,
             Share& share) {
  // A call takes a few microseconds, so the clock is read seldom, but often
  // enough.
  constexpr int64_t kSteps = 2000;
  const auto chains = ATTND_FUNCTION(isa, RunChains);
  volatile float seed = 0.5F;
  // Wide vectors run at a fraction of their speed until their units are on, so
  // this call is not measured.
  chains(kSteps, &seed);
  const std::chrono::nanoseconds before = share.busy;
  const auto start = Clock::now();
  do {
    share.operations += chains(kSteps, &seed);
    share.busy = before + (Clock::now() - start);
  } while (share.busy < duration && !stop());
}

// Each task is the share of one thread. It waits until all tasks have begun,
// then measures, and makes way for other jobs as every task does.
class PeakJob : public TileJob {
 public:
  PeakJob(Isa isa, std::chrono::nanoseconds duration, int64_t threads)
      : isa_(isa), duration_(duration), shares_(static_cast<size_t>(threads)) {}

  std::vector<Phase> Phases() const override {
    const auto threads = static_cast<int64_t>(shares_.size());
    return {{.tasks = threads, .slots = threads}};
  }

  Slice Run(int64_t /*phase*/, int64_t task, int64_t /*slot*/,
            SliceControl& control) override {
    Share& share = shares_[static_cast<size_t>(task)];
    const auto stop = [&] {
      return control.ShouldStop() || control.ShouldYield();
    };
    if (share.operations == 0) {
      // Threads that share clocks or units must run at the same time. If other
      // jobs hold the workers, the task gives up waiting, and each task then
      // runs when it can.
      const auto give_up = Clock::now() + duration_;
      begun_.fetch_add(1, std::memory_order_relaxed);
      while (begun_.load(std::memory_order_relaxed) <
                 static_cast<int64_t>(shares_.size()) &&
             Clock::now() < give_up && !stop()) {
        std::this_thread::yield();
      }
    }
    Measure(isa_, duration_, stop, share);
    return share.busy < duration_ && !control.ShouldStop() ? Slice::kYield
                                                           : Slice::kDone;
  }

  double TotalRate() const {
    double total = 0;
    for (const Share& share : shares_) total += share.Rate();
    return total;
  }

 private:
  const Isa isa_;
  const std::chrono::nanoseconds duration_;
  std::atomic<int64_t> begun_{0};
  std::vector<Share> shares_;  // each written by its task alone
};

}  // namespace

double MeasureFmaPeak(Isa isa, std::chrono::nanoseconds duration) {
  Share share;
  Measure(
      isa, duration, [] { return false; }, share);
  return share.Rate();
}

double MeasureFmaPeak(Isa isa, std::chrono::nanoseconds duration,
                      TileScheduler& scheduler, int64_t threads,
                      const StopSignal* stop) {
  PeakJob job(isa, duration,
              std::clamp<int64_t>(threads, 1, scheduler.threads()));
  // The caller knows whether `stop` ended it. If the scheduler shuts down, the
  // result covers what ran before that.
  scheduler.Run(&job, stop).IgnoreError();
  return job.TotalRate();
}

}  // namespace attnd
#endif  // HWY_ONCE
