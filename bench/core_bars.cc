#include "bench/core_bars.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace attnd::bench {
namespace {

enum class Sign { kAtLeast, kAtMost };

struct Bar {
  std::string text;
  // The bar applies to records with all these values. If a value is a list, one
  // of its elements is enough.
  Json where;
  std::string key;
  Sign sign = Sign::kAtLeast;
  double limit = 0;
};

bool FallsUnder(const Json& record, const Json& where) {
  return std::all_of(
      where.items().begin(), where.items().end(), [&](const auto& item) {
        const Json& wanted = item.value();
        const Json value = record.value(item.key(), Json());
        return wanted.is_array() ? std::find(wanted.begin(), wanted.end(),
                                             value) != wanted.end()
                                 : value == wanted;
      });
}

std::vector<Json> RecordsUnder(const std::vector<Json>& records,
                               const Json& where) {
  std::vector<Json> chosen;
  std::copy_if(records.begin(), records.end(), std::back_inserter(chosen),
               [&](const Json& r) { return FallsUnder(r, where); });
  return chosen;
}

const std::vector<Bar>& Bars() {
  const Json one_thread_f32 = {{"dtype", "f32"}, {"threads", 1}};
  const auto with = [&](Json where) {
    where.update(one_thread_f32);
    return where;
  };
  static const std::vector<Bar> bars = {
      {.text = "f32 prefill, head_dim 128, N = 4096: share of FMA peak",
       .where = with({{"name", "prefill"}, {"head_dim", 128}, {"q_len", 4096}}),
       .key = "peak_ratio",
       .limit = 0.92},
      {.text = "f32 prefill, head_dim 64, N = 1024 to 16384: share of FMA peak",
       .where = with({{"name", "prefill"},
                      {"head_dim", 64},
                      {"q_len", {1024, 2048, 4096, 8192, 16384}}}),
       .key = "peak_ratio",
       .limit = 0.88},
      {.text = "f32, 32 heads, N = 128, head_dim 64: share of FMA peak",
       .where = with({{"name", "short"}}),
       .key = "peak_ratio",
       .limit = 0.72},
      {.text = "f32 causal, head_dim 128, N = 4096: share of FMA peak",
       .where = with(
           {{"name", "prefill_causal"}, {"head_dim", 128}, {"q_len", 4096}}),
       .key = "peak_ratio",
       .limit = 0.86},
      {.text = "odd shapes: share of FMA peak",
       .where = with({{"name", "odd"}}),
       .key = "peak_ratio",
       .limit = 0.80},
      {.text = "f32 decode: share of stream bandwidth",
       .where = with({{"name", "decode"}}),
       .key = "stream_ratio",
       .limit = 0.90},
      {.text = "bf16 decode: share of stream bandwidth",
       .where = {{"name", "decode"}, {"dtype", "bf16"}, {"threads", 1}},
       .key = "stream_ratio",
       .limit = 0.90},
      {.text =
           "f32 decode, 4 query heads per kv head: share of stream bandwidth",
       .where = with({{"name", "decode_gqa"}}),
       .key = "stream_ratio",
       .limit = 0.85},
      {.text =
           "bf16 decode, 4 query heads per kv head: share of stream bandwidth",
       .where = {{"name", "decode_gqa"}, {"dtype", "bf16"}, {"threads", 1}},
       .key = "stream_ratio",
       .limit = 0.70},
      {.text = "share of FMA peak with 2 threads / with 1 thread",
       .where = {{"name", "two_threads"}, {"threads", 2}},
       .key = "relative",
       .limit = 0.95},
      {.text = "N = 4096, 1 and 2 threads: speed / speed of naive attention",
       .where = {{"name", "over_naive"}, {"q_len", 4096}},
       .key = "speedup",
       .limit = 5},
      {.text = "backward, head_dim 64 to 128, N = 2048: share of FMA peak",
       .where = with({{"name", "backward"}}),
       .key = "peak_ratio",
       .limit = 0.70},
      {.text = "causal, window 1024 or none, N = 4096: cost per visible key / "
               "in full call",
       .where = {{"name", "masked"}, {"causal", true}},
       .key = "cost",
       .sign = Sign::kAtMost,
       .limit = 1.15},
      {.text = "speed with the best forced block_size / with the automatic one",
       .where = {{"name", "auto"}},
       .key = "relative",
       .sign = Sign::kAtMost,
       .limit = 1.05},
      {.text = "speed with the best forced instruction set or precision / "
               "automatic",
       .where = {{"name", "auto_isa"}},
       .key = "relative",
       .sign = Sign::kAtMost,
       .limit = 1.05},
  };
  return bars;
}

bool Steady(const Json& record) { return record["steady"].get<bool>(); }

class Judge {
 public:
  explicit Judge(const Run& run)
      : machine_(run.machine), records_(run.records) {}

  std::vector<Verdict> Verdicts() {
    for (const Bar& bar : Bars()) Add(bar);
    for (const int head_dim : {64, 128}) AddSixteenBit(head_dim);
    for (const int head_dim : {64, 128}) AddScaling(head_dim);
    return std::move(verdicts_);
  }

 private:
  void Add(const std::string& text, double measured, bool steady, Sign sign,
           double limit) {
    Verdict verdict = {.bar = text, .measured = measured, .steady = steady};
    (sign == Sign::kAtLeast ? verdict.at_least : verdict.at_most) = limit;
    verdicts_.push_back(std::move(verdict));
  }

  void Add(const Bar& bar) {
    std::vector<Json> records = RecordsUnder(records_, bar.where);
    std::erase_if(records, [&](const Json& r) { return !r.contains(bar.key); });
    if (records.empty()) return;
    const auto [low, high] = std::minmax_element(
        records.begin(), records.end(), [&](const Json& a, const Json& b) {
          return a[bar.key].get<double>() < b[bar.key].get<double>();
        });
    const Json& worst = bar.sign == Sign::kAtLeast ? *low : *high;
    Add(bar.text, worst[bar.key].get<double>(), Steady(worst), bar.sign,
        bar.limit);
  }

  // With native dot products, the limit is a share of the f32 peak, which
  // depends on how many multiply-adds the core starts per cycle. Without them,
  // it is a share of attnd's own f32 speed.
  void AddSixteenBit(int head_dim) {
    const auto text = [&](std::string dtype, const char* native,
                          const char* what) {
      return dtype.append(native).append(std::to_string(head_dim)).append(what);
    };
    for (const std::string dtype : {"bf16", "f16"}) {
      for (const Json& r : RecordsUnder(records_, {{"name", "16_bit"},
                                                   {"dtype", dtype},
                                                   {"head_dim", head_dim}})) {
        if (!r["native_dot"].get<bool>()) {
          Add(text(dtype, ", no native dot products, head_dim ",
                   ": speed / speed of f32"),
              r["relative"].get<double>(), Steady(r), Sign::kAtLeast, 0.95);
          continue;
        }
        const bool two = machine_["fmas_per_cycle"].get<double>() > 1.5;
        const double limit =
            head_dim == 64 ? (two ? 1.25 : 1.58) : (two ? 1.45 : 1.75);
        Add(text(dtype, ", native dot products, head_dim ",
                 ": share of f32 FMA peak"),
            r["peak_ratio"].get<double>(), Steady(r), Sign::kAtLeast, limit);
      }
    }
  }

  // The shares of peak must be close together, and each further key must take
  // the same number of bytes.
  void AddScaling(int head_dim) {
    const std::string text =
        "head_dim " + std::to_string(head_dim) + ", N = 1024 to 32768: ";
    std::vector<Json> records =
        RecordsUnder(records_, {{"name", "scaling"}, {"head_dim", head_dim}});
    if (records.size() < 3) return;
    std::map<double, Json> by_length;
    for (const Json& r : records) by_length[r["q_len"].get<double>()] = r;
    std::vector<double> shares, growths;
    const Json* previous = nullptr;
    for (const auto& [length, r] : by_length) {
      shares.push_back(r["peak_ratio"].get<double>());
      if (previous != nullptr) {
        growths.push_back((r["held_bytes"].get<double>() -
                           (*previous)["held_bytes"].get<double>()) /
                          (length - (*previous)["q_len"].get<double>()));
      }
      previous = &r;
    }
    const auto spread = [](const std::vector<double>& values) {
      const auto [low, high] =
          std::minmax_element(values.begin(), values.end());
      return std::pair(*low, *high);
    };
    const auto [slow, fast] = spread(shares);
    Add(text + "spread of the shares of FMA peak", fast - slow,
        std::all_of(records.begin(), records.end(), Steady), Sign::kAtMost,
        0.05);
    const auto [least, most] = spread(growths);
    Add(text + "spread of the bytes per further key", most / least - 1, true,
        Sign::kAtMost, 0.01);
  }

  const Json& machine_;
  const std::vector<Json>& records_;
  std::vector<Verdict> verdicts_;
};

}  // namespace

std::vector<Verdict> JudgeCore(const Run& run) { return Judge(run).Verdicts(); }

}  // namespace attnd::bench
