// Implements attnctl estimate, which shows how much memory a call would take.
// It asks a server, or computes the numbers itself (--offline).
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/checked_math.h"
#include "client/attnctl/commands.h"
#include "client/attnctl/deployment_flags.h"
#include "client/attnctl/estimate_sweep.h"
#include "client/attnctl/largest_problem.h"
#include "client/attnctl/offline_estimate.h"
#include "client/attnctl/option_flags.h"
#include "cost/cost_limits.h"

namespace attnd::attnctl {
namespace {

struct EstimateFlags {
  client::MemoryEstimateOptions options;
  std::vector<int64_t> bias_shape;
  client::DataType bias_dtype = client::DataType::kF32;
  std::vector<int64_t> mask_shape;
  DeploymentFlags deployment;
  bool offline = false;
  SweepFlags output;
};

// Returns whether an offline estimate says that no server can compute the
// problem. Otherwise it does not say whether the problem fits a server.
bool FitsNoServer(const client::MemoryEstimate& estimate) {
  return !estimate.fits && estimate.limiting_factor == kInt64RangeLimit;
}

void PrintTable(const client::MemoryEstimate& estimate,
                const EstimateFlags& flags, Session& session) {
  const int64_t concurrency =
      flags.options.concurrency != 0 ? flags.options.concurrency : 1;
  std::vector<Session::Row> rows = {
      {"input", FormatBytes(estimate.input_bytes)},
      {"output", FormatBytes(estimate.output_bytes)},
      {"workspace", FormatBytes(estimate.workspace_bytes)},
      {"flash, total", FormatBytes(estimate.flash_bytes)},
      {"naive, for comparison", FormatBytes(estimate.naive_bytes)},
      {"flash saves",
       absl::StrFormat("%.1f %% of naive", estimate.reduction_ratio * 100)},
      {"message buffers", FormatBytes(estimate.wire_bytes)},
      {"peak, one request", FormatBytes(estimate.peak_per_request_bytes)},
      {absl::StrCat("peak, ", concurrency, " at once"),
       FormatBytes(estimate.peak_bytes)},
      {"largest message", FormatBytes(estimate.required_message_bytes)},
      {"floating-point operations", estimate.flops == kMaxInt64
                                        ? "more than 9.2e+18"
                                        : absl::StrCat(estimate.flops)}};
  if (!flags.offline) {
    rows.emplace_back("fits this server", estimate.fits ? "yes" : "no");
    rows.emplace_back("limiting factor", estimate.limiting_factor);
  } else if (FitsNoServer(estimate)) {
    rows.emplace_back("fits no server",
                      "the problem is too large to be computed");
  }
  session.PrintRows(rows);
}

Json EstimateJson(const client::MemoryEstimate& estimate, bool offline) {
  Json json = {{"naive_bytes", estimate.naive_bytes},
               {"flash_bytes", estimate.flash_bytes},
               {"reduction_ratio", estimate.reduction_ratio},
               {"input_bytes", estimate.input_bytes},
               {"output_bytes", estimate.output_bytes},
               {"workspace_bytes", estimate.workspace_bytes},
               {"wire_bytes", estimate.wire_bytes},
               {"peak_per_request_bytes", estimate.peak_per_request_bytes},
               {"peak_bytes", estimate.peak_bytes},
               {"required_message_bytes", estimate.required_message_bytes},
               {"flops", estimate.flops}};
  if (!offline) {
    json["fits"] = estimate.fits;
    json["limiting_factor"] = estimate.limiting_factor;
  }
  return json;
}

// Returns a tensor of this type and shape without elements, because a server
// does not need them for an estimate.
client::ConstTensor WithoutElements(client::DataType dtype,
                                    const std::vector<int64_t>& shape) {
  return {client::ConstElements(dtype, std::span<const std::byte>()), shape};
}

ExitCode RunEstimate(EstimateFlags& flags, Session& session) {
  client::AttentionOptions& attention = flags.options.attention;
  if (!flags.bias_shape.empty()) {
    attention.bias = WithoutElements(flags.bias_dtype, flags.bias_shape);
  }
  if (!flags.mask_shape.empty()) {
    attention.mask = WithoutElements(client::DataType::kBool, flags.mask_shape);
  }
  const absl::Status largest_problem =
      CheckLargestProblem(flags.options, flags.offline);
  if (!largest_problem.ok()) {
    session.screen.PrintError(
        absl::StrCat("attnctl: ", largest_problem.message()));
    return kUsage;
  }
  const ExitCode bench_read =
      ReadBench(flags.deployment, flags.options, session);
  if (bench_read != kOk) return bench_read;
  const client::AttentionClient client = session.Connect();
  const Estimator estimator = {
      .estimate =
          [&](const client::MemoryEstimateOptions& options) {
            return flags.offline ? EstimateOffline(
                                       options, {.max_message_bytes =
                                                     session.max_message_bytes})
                                 : client.EstimateMemory(options);
          },
      .report_error =
          [&](const absl::Status& status) {
            if (!flags.offline) return session.CallError(status);
            session.screen.PrintError(
                absl::StrCat("attnctl: ", status.message()));
            return kUsage;
          },
      .to_json =
          [&](const client::MemoryEstimate& estimate) {
            return EstimateJson(estimate, flags.offline);
          },
      .has_limits = !flags.offline};
  if (flags.output.sweep) {
    return RunEstimateSweep(flags.options, flags.output, estimator, session);
  }
  const auto estimate = estimator.estimate(flags.options);
  if (!estimate.ok()) return estimator.report_error(estimate.status());
  if (flags.deployment.given()) {
    return PrintDeployment(flags.deployment, flags.options, *estimate,
                           flags.offline, flags.output.json, session);
  }
  Json json = estimator.to_json(*estimate);
  if (flags.offline && FitsNoServer(*estimate)) {
    json["fits"] = false;
    json["limiting_factor"] = estimate->limiting_factor;
  }
  ExitCode exit_code = kOk;
  if (flags.options.goal != client::EstimateGoal::kEstimate) {
    const std::string sentence =
        LargestProblemSentence(flags.options, *estimate);
    json[AnswerField(flags.options.goal)] = estimate->largest;
    json["limiting_factor"] = estimate->limiting_factor;
    if (estimate->largest == 0) {
      json["reason"] = sentence;
      exit_code = kNoAnswer;
    }
    if (!flags.output.json) session.screen.Print(sentence);
    flags.options = LargestProblem(flags.options, *estimate);
  }
  if (flags.output.json) {
    session.screen.PrintJson(json);
  } else {
    PrintTable(*estimate, flags, session);
  }
  return exit_code;
}

}  // namespace

void AddEstimateCommand(CLI::App& app, Session& session) {
  CLI::App* command = app.add_subcommand(
      "estimate", "Estimate the memory that a call takes, without running it");
  auto flags = std::make_shared<EstimateFlags>();
  client::MemoryEstimateOptions& options = flags->options;
  AddNumberFlag(*command, "--seq-len", options.seq_len,
                "number of queries and of keys");
  AddNumberFlag(*command, "--q-len", options.q_len,
                "number of queries; default: --seq-len");
  AddNumberFlag(*command, "--kv-len", options.kv_len,
                "number of keys and values; default: --seq-len");
  AddNumberFlag(*command, "--dimensions", options.dimensions,
                "dimension of every head; default: 128");
  AddNumberFlag(*command, "--head-dim", options.head_dim,
                "dimension of query and key heads; default: --dimensions");
  AddNumberFlag(*command, "--v-head-dim", options.v_head_dim,
                "dimension of value heads; default: --head-dim");
  AddNumberFlag(*command, "--batch", options.batch, "batch size; default: 1");
  AddNumberFlag(*command, "--num-q-heads", options.num_q_heads,
                "number of query heads; default: 1");
  AddNumberFlag(*command, "--num-kv-heads", options.num_kv_heads,
                "number of key and value heads; default: --num-q-heads");
  AddNumberFlag(*command, "--threads", options.threads,
                "number of worker threads; default: those of the server, or of "
                "this machine with --offline");
  AddNumberFlag(*command, "--concurrency", options.concurrency,
                "number of requests that run at the same time; default: 1");
  AddTypeFlag(*command, "--dtype", options.dtype,
              "type of query, key and value; default: f32");
  AddTypeFlag(*command, "--output-dtype", options.output_dtype,
              "type of the output; default: --dtype");
  AddTransportFlag(*command, options.transport);
  AddOptionFlags(*command, options.attention);
  AddNumberFlag(*command, "--bias-shape", flags->bias_shape,
                "include a bias of this shape");
  AddTypeFlag(*command, "--bias-dtype", flags->bias_dtype,
              "type of the bias; default: f32");
  AddNumberFlag(*command, "--mask-shape", flags->mask_shape,
                "include a mask of this shape");
  command->add_flag("--return-lse", options.return_lse,
                    "include lse in the output");
  AddDeploymentFlags(*command, flags->deployment);
  command->add_flag("--offline", flags->offline,
                    "compute the numbers for this machine, without a server");
  AddSweepFlags(*command, kEstimateAxes, flags->output);
  CLI::Option* const sweep = command->get_option("--sweep");
  CLI::Option* const max = AddLargestProblemFlags(*command, options);
  max->excludes(sweep);
  for (const char* flag : {"--limits", "--rate"}) {
    command->get_option(flag)->excludes(sweep)->excludes(max);
  }
  command->footer(
      "The exit code is 6 if not even the smallest size fits (--max), or if "
      "no\n"
      "number of pods is enough (--rate). --json then has the reason.\n"
      "Examples:\n"
      "  attnctl estimate --seq-len=16384 --num-q-heads=32 --num-kv-heads=8\n"
      "  attnctl estimate --q-len=1 --kv-len=32768 --concurrency=64 "
      "--offline --json\n"
      "  attnctl estimate --max=seq-len --budget=8GiB --num-q-heads=32 "
      "--offline\n"
      "  attnctl estimate --sweep=seq-len=1024..1048576 --svg=memory.svg\n"
      "  attnctl estimate --sweep=concurrency=1..64 --seq-len=4096 --csv\n"
      "  attnctl estimate --seq-len=4096 --num-q-heads=32 --concurrency=2 "
      "--limits=compose\n"
      "  attnctl estimate --seq-len=4096 --num-q-heads=32 --rate=5 "
      "--p99-ms=2000\n"
      "      makes such calls to a server for some seconds, and computes how "
      "many\n"
      "      servers 5 of them per second need (M/D/1 queue with processor\n"
      "      sharing)\n");
  command->callback(
      [flags, &session] { session.exit_code = RunEstimate(*flags, session); });
}

}  // namespace attnd::attnctl
