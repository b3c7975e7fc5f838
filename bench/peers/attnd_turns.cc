// Runs attnd's core in the contest with its peers, and measures the limits of
// the processor that they all run on.
#include <chrono>
#include <exception>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>

#include "base/half_float.h"
#include "bench/amx_rate.h"
#include "bench/core_case.h"
#include "bench/peers/turns.h"
#include "bench/records.h"
#include "bench/stream_bandwidth.h"
#include "core/fma_peak.h"

namespace attnd::bench {
namespace {

DataType TypeNamed(const std::string& name) {
  for (const DataType type :
       {DataType::kF32, DataType::kF16, DataType::kBF16}) {
    if (name == DataTypeName(type)) return type;
  }
  throw std::invalid_argument("expected the type f32, f16 or bf16, got " +
                              name);
}

Case CaseOf(const Turns::Json& of) {
  return {
      .name = of["name"],
      .dtype = TypeNamed(of["dtype"]),
      .q_heads = of["q_heads"],
      .kv_heads = of["kv_heads"],
      .q_len = of["q_len"],
      .kv_len = of["kv_len"],
      .head_dim = of["head_dim"],
      .causal = of["causal"],
      .pass = of["backward"] ? Case::Pass::kBackward : Case::Pass::kForward};
}

void Read(const std::string& path, const Workspace& to) {
  ReadTensor(path, to.data(), static_cast<size_t>(to.size_bytes()));
}

class AttndCase : public Prepared {
 public:
  AttndCase(const Case& c, const std::string& folder, AttentionEngine& engine)
      : c_(c), engine_(engine), problem_(ProblemOf(c)), tensors_(c, problem_) {
    Read(folder + "/query", tensors_.query());
    Read(folder + "/key", tensors_.key());
    Read(folder + "/value", tensors_.value());
    if (c.pass == Case::Pass::kBackward) {
      Read(folder + "/grad_output", tensors_.grad_output());
      engine.Run(problem_, tensors_.forward()).value();
    }
  }

  void Call() override { RunOnce(c_, engine_, problem_, tensors_); }

  std::vector<float> Answer() override {
    std::vector<float> values;
    if (c_.pass == Case::Pass::kBackward) {
      for (const Workspace* gradient :
           {&tensors_.grad_query(), &tensors_.grad_key(),
            &tensors_.grad_value()}) {
        values.insert(values.end(), gradient->floats(),
                      gradient->floats() + gradient->size_bytes() / 4);
      }
      return values;
    }
    const Workspace& output = tensors_.output();
    const auto* halves = reinterpret_cast<const uint16_t*>(output.data());
    values.resize(static_cast<size_t>(output.size_bytes() / SizeOf(c_.dtype)));
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = c_.dtype == DataType::kF32   ? output.floats()[i]
                  : c_.dtype == DataType::kF16 ? FloatFromF16(halves[i])
                                               : FloatFromBF16(halves[i]);
    }
    return values;
  }

 private:
  const Case c_;
  AttentionEngine& engine_;
  const AttentionProblem problem_;
  const Tensors tensors_;
};

void Serve() {
  const std::unique_ptr<AttentionEngine> engine =
      MakePinnedEngine({.threads = 1});
  StreamBandwidth stream;
  Turns turns;
  turns.prepare = [&](const Turns::Json& of, const std::string& folder) {
    return std::make_unique<AttndCase>(CaseOf(of), folder, *engine);
  };
  turns.other = [&](const Turns::Json& request) -> Turns::Json {
    const std::string what = request["do"];
    if (what == "peak") {
      return {{"rate", MeasureFmaPeak(engine->machine().isa,
                                      std::chrono::milliseconds(10),
                                      engine->scheduler(), 1)},
              {"amx_rate", MeasureAmxRate(engine->scheduler())}};
    }
    if (what == "stream") {
      return {{"rate", stream.Measure(engine->scheduler())}, {"amx_rate", 0}};
    }
    if (what == "machine") {
      Turns::Json machine = MachineRecord();
      machine["stream"] = stream.Records();
      return machine;
    }
    throw std::invalid_argument("unknown request " + what);
  };
  turns.Serve();
}

}  // namespace
}  // namespace attnd::bench

int main() {
  try {
    attnd::bench::Serve();
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "attnd_turns: " << error.what() << "\n";
    return 1;
  }
}
