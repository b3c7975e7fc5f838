#include "client/attnctl/largest_problem.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "client/attnctl/option_flags.h"
#include "client/attnctl/session.h"

namespace attnd::attnctl {
namespace {

using client::EstimateGoal;
using client::MemoryEstimateOptions;

// A size that --max can search.
struct SearchedSize {
  const char* name;  // the value of --max
  EstimateGoal goal;
  int64_t MemoryEstimateOptions::*size;
  const char* largest;   // what the answer is
  const char* number;    // how the answer is said; $0 stands for the number
  const char* smallest;  // what size 1 is
  const char* next;      // what does not fit any more
};
constexpr SearchedSize kSearchedSizes[] = {
    {"seq-len", EstimateGoal::kMaxSeqLen, &MemoryEstimateOptions::seq_len,
     "The longest sequence", "has a length of $0", "a sequence of length 1",
     "A longer one"},
    {"batch", EstimateGoal::kMaxBatch, &MemoryEstimateOptions::batch,
     "The largest batch", "is $0", "a batch of 1", "A larger one"},
    {"concurrency", EstimateGoal::kMaxConcurrency,
     &MemoryEstimateOptions::concurrency, "The highest concurrency", "is $0",
     "one request", "One more request"}};

const SearchedSize& SizeOf(EstimateGoal goal) {
  return *std::find_if(
      std::begin(kSearchedSizes), std::end(kSearchedSizes),
      [goal](const SearchedSize& size) { return size.goal == goal; });
}

// Says which limit `name` is, a limiting_factor of the server.
std::string LimitText(const std::string& name) {
  static const auto* const kTexts = new std::map<std::string, const char*>{
      {"memory_budget", "the budget"},
      {"message_size",
       "the largest message (--max-message-bytes); --transport=stream has no "
       "such limit"},
      {"max_in_flight",
       "the number of requests that the server accepts at once "
       "(--max-in-flight)"},
      {"int64_range", "what can be computed"}};
  const auto found = kTexts->find(name);
  return found != kTexts->end() ? found->second : name;
}

}  // namespace

CLI::Option* AddLargestProblemFlags(CLI::App& command,
                                    MemoryEstimateOptions& options) {
  std::map<std::string, EstimateGoal> goals;
  for (const SearchedSize& size : kSearchedSizes) {
    goals.emplace(size.name, size.goal);
  }
  CLI::Option* const max =
      command
          .add_option_function<std::string>(
              "--max",
              [&options, goals](const std::string& name) {
                options.goal = goals.at(name);
              },
              "find the longest sequence, the largest batch or the highest "
              "concurrency that fits into --budget. The flag of that size "
              "cannot be given, too")
          ->check(CLI::IsMember({"seq-len", "batch", "concurrency"}))
          ->type_name("NAME");
  AddBytesFlag(command, "--budget", options.budget_bytes,
               "the memory for --max, for example 8GiB or 500MB; default: the "
               "memory budget of the server. --offline has no default")
      ->needs(max);
  return max;
}

absl::Status CheckLargestProblem(const MemoryEstimateOptions& options,
                                 bool offline) {
  if (options.goal == EstimateGoal::kEstimate) return absl::OkStatus();
  const SearchedSize& size = SizeOf(options.goal);
  if (options.*size.size != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--", size.name, ": expected nothing, because --max=", size.name,
        " searches it, got ", options.*size.size));
  }
  if (offline && options.budget_bytes == 0) {
    return absl::InvalidArgumentError(
        "--budget: expected a number of bytes, because without a server "
        "nothing else limits the memory, got nothing");
  }
  return absl::OkStatus();
}

std::string AnswerField(EstimateGoal goal) {
  return absl::StrReplaceAll(absl::StrCat("max_", SizeOf(goal).name),
                             {{"-", "_"}});
}

std::string LargestProblemSentence(const MemoryEstimateOptions& options,
                                   const client::MemoryEstimate& estimate) {
  const SearchedSize& size = SizeOf(options.goal);
  const std::string budget = options.budget_bytes > 0
                                 ? FormatBytesShort(options.budget_bytes)
                                 : "the memory budget of this server";
  const std::string together =
      options.goal != EstimateGoal::kMaxConcurrency && options.concurrency > 1
          ? absl::StrCat(" with ", options.concurrency, " requests at once")
          : "";
  const std::string limit = LimitText(estimate.limiting_factor);
  if (estimate.largest == 0) {
    return absl::StrCat("Not even ", size.smallest, " fits into ", budget,
                        together, ". It exceeds ", limit,
                        ". The figures are those of ", size.smallest, ".");
  }
  return absl::StrCat(
      size.largest, " that fits into ", budget, together, " ",
      absl::StrReplaceAll(size.number,
                          {{"$0", absl::StrCat(estimate.largest)}}),
      ". ", size.next, " would exceed ", limit, ".");
}

MemoryEstimateOptions LargestProblem(MemoryEstimateOptions options,
                                     const client::MemoryEstimate& estimate) {
  options.*SizeOf(options.goal).size = std::max<int64_t>(1, estimate.largest);
  return options;
}

}  // namespace attnd::attnctl
