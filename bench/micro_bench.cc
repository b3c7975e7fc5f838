// Measures the parts of a tile separately, on data in the caches. This shows
// what the core could reach without other costs. Products are given as a share
// of the FMA peak, which is measured before and after each of them.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "core/fma_peak.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/micro_bench.cc"
#include "hwy/foreach_target.h"
// Highway must be included after foreach_target.
#include "core/kernels/microkernels-inl.h"
#include "core/kernels/pack-inl.h"
#include "core/kernels/softmax-inl.h"
#include "core/kernels/targets.h"
#include "core/workspace.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {
namespace {

constexpr int64_t kMicroRows = kGeometry.rows;

Workspace Filled(int64_t floats) {
  Workspace block = Workspace::Reserve(floats * 4).value();
  for (int64_t i = 0; i < floats; ++i) {
    block.floats()[i] = static_cast<float>(i % 7) / 8;
  }
  return block;
}

// Times `call`, which does `flops` operations and moves `bytes`. A number that
// is 0 is not reported.
template <class Call>
void Measure(benchmark::State& state, double flops, double bytes,
             const Call& call) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::milliseconds kPeakTime{10};
  const double before = MeasureFmaPeak(kIsa, kPeakTime);
  const Clock::time_point start = Clock::now();
  for ([[maybe_unused]] auto _ : state) {
    call();
    benchmark::ClobberMemory();
  }
  const double seconds =
      std::chrono::duration<double>(Clock::now() - start).count();
  const double peak = (before + MeasureFmaPeak(kIsa, kPeakTime)) / 2;
  const auto calls = static_cast<double>(state.iterations());
  if (flops > 0) {
    state.counters["peak_ratio"] = flops * calls / seconds / peak;
  }
  if (bytes > 0) {
    state.counters["gbytes_per_s"] = bytes * calls / seconds / 1e9;
  }
}

void Scores(benchmark::State& state) {
  const int64_t dim = state.range(0);
  const Workspace q = Filled(kMicroRows * dim);
  const Workspace panel = Filled(dim * kPanelKeys);
  const Workspace scores = Filled(kMicroRows * kPanelKeys);
  const Workspace max = Filled(kMicroRows * kLanes);
  Measure(state, static_cast<double>(2 * kMicroRows * kPanelKeys * dim), 0,
          [&] {
            kMicrokernels.score[kRows - 1][kVectors - 1](
                q.floats(), dim, panel.floats(), dim, scores.floats(),
                kPanelKeys, max.floats(), PrefetchCursor(panel.data(), false));
          });
}

void Values(benchmark::State& state) {
  const int64_t keys = state.range(0);
  const Workspace weights = Filled(kMicroRows * keys);
  const Workspace values = Filled(keys * kPanelKeys);
  const Workspace output = Filled(kMicroRows * kPanelKeys);
  Measure(state, static_cast<double>(2 * kMicroRows * kPanelKeys * keys), 0,
          [&] {
            kMicrokernels.value[kRows - 1][kVectors - 1](
                weights.floats(), keys, values.floats(), keys, output.floats(),
                kPanelKeys, PrefetchCursor(values.data(), false));
          });
}

void PackKeys(benchmark::State& state) {
  const int64_t dim = state.range(0);
  const Workspace keys = Filled(kPanelKeys * dim);
  const Workspace panel = Filled(dim * kPanelKeys);
  Measure(state, 0, static_cast<double>(8 * kPanelKeys * dim), [&] {
    PackPanel(RowReader<AsF32>{keys.floats(), dim}, kPanelKeys, dim, false,
              panel.floats());
  });
}

void Exponentials(benchmark::State& state) {
  const int64_t keys = state.range(0);
  const Workspace fresh = Filled(keys);
  const Workspace scores = Filled(keys);
  Measure(state, 0, static_cast<double>(8 * keys), [&] {
    std::copy_n(fresh.floats(), keys, scores.floats());
    benchmark::DoNotOptimize(Exponentiate<Operand::kF32, false>(
        scores.floats(), nullptr, 0, keys, 0.18F, 1, keys));
  });
}

}  // namespace

void RegisterMicro(const std::string& isa) {
  const auto add = [&](const char* name, auto* bench,
                       const std::vector<int64_t>& sizes) {
    for (const int64_t size : sizes) {
      benchmark::RegisterBenchmark((isa + "/" + name).c_str(), bench)
          ->Arg(size);
    }
  };
  add("scores/head_dim", &Scores, {64, 128});
  add("values/keys", &Values, {128});
  add("pack_keys/head_dim", &PackKeys, {64, 128});
  add("exponentials/keys", &Exponentials, {256});
}

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace attnd {
namespace {

void RegisterAll() {
  for (const Isa isa : SupportedIsas()) {
    // Not for scalar code, nor for bf16, which shares the parts of its f32 set.
    if (isa == Isa::kScalar || F32Isa(isa) != isa) continue;
    ATTND_FUNCTION(isa, RegisterMicro)(std::string(IsaName(isa)));
  }
}

}  // namespace
}  // namespace attnd

int main(int argc, char** argv) {
  attnd::RegisterAll();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
#endif  // HWY_ONCE
