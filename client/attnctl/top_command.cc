// Implements attnctl top, which shows the load of a server.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/attnctl/commands.h"
#include "client/attnctl/load_report.h"
#include "client/attnctl/option_flags.h"
#include "client/attnctl/terminal.h"

namespace attnd::attnctl {
namespace {

using SteadyClock = std::chrono::steady_clock;

// How long top waits for an answer before it calls the server not reachable.
constexpr absl::Duration kSampleDeadline = absl::Seconds(3);
// top shows an outage itself, and takes the next sample an interval later.
constexpr client::RetryPolicy kOneAttempt = {.max_attempts = 1};
// While top waits for an answer, it looks for keys and signals this often.
constexpr std::chrono::milliseconds kInputPeriod{50};

struct TopFlags {
  double interval_seconds = 2;
  bool once = false;
  bool json = false;
};

LoadSample TakeSample(const client::AttentionClient& client) {
  LoadSample sample;
  const auto health = client.CheckHealth();
  if (absl::IsUnavailable(health.status()) ||
      absl::IsDeadlineExceeded(health.status())) {
    sample.info = health.status();
  } else {
    // A proxy may pass on only the calls of attnd, and not those of the health
    // service. Then the health is unknown.
    if (health.ok()) sample.health = *health;
    sample.info = client.GetServerInfo();
  }
  sample.time = absl::Now();
  return sample;
}

// Shows the alternate screen of the terminal while it exists.
class AlternateScreen {
 public:
  explicit AlternateScreen(Screen& screen) : screen_(screen) {
    screen_.EnterAlternateScreen();
  }
  ~AlternateScreen() { screen_.LeaveAlternateScreen(); }
  AlternateScreen(const AlternateScreen&) = delete;
  AlternateScreen& operator=(const AlternateScreen&) = delete;

 private:
  Screen& screen_;
};

void Draw(const LoadReport& report, absl::string_view footer, Screen& screen) {
  const TerminalSize size = GetTerminalSize();
  screen.Draw(
      FitRows(report.Lines(size.columns), footer, size.rows, size.columns));
}

// Takes two samples and prints what happened between them.
ExitCode RunOnce(const TopFlags& flags, Session& session) {
  const client::AttentionClient client =
      session.Connect(kSampleDeadline, kOneAttempt, /*only_healthy=*/false);
  LoadReport report(session.server, absl::LocalTimeZone());
  for (const bool first : {true, false}) {
    if (!first) absl::SleepFor(absl::Seconds(flags.interval_seconds));
    LoadSample sample = TakeSample(client);
    if (!sample.info.ok()) return session.CallError(sample.info.status());
    report.Add(std::move(sample));
  }
  if (flags.json) {
    session.screen.PrintJson(report.ToJson());
  } else {
    const size_t columns = session.screen.out_is_terminal()
                               ? GetTerminalSize().columns
                               : TerminalSize().columns;
    for (const std::string& line : report.Lines(columns)) {
      session.screen.Print(line);
    }
  }
  return kOk;
}

// Shows samples until the user quits: on the screen, or as lines of JSON.
// Returns an error if no call can succeed.
absl::StatusOr<ExitCode> RunLive(const TopFlags& flags, Session& session) {
  // When the user quits, this is destroyed last: it waits for the call that is
  // in progress, and the terminal must be restored before that.
  std::future<LoadSample> pending;
  UserInput input(/*full_screen=*/!flags.json);
  std::optional<AlternateScreen> alternate;
  if (!flags.json) alternate.emplace(session.screen);
  const client::AttentionClient client =
      session.Connect(kSampleDeadline, kOneAttempt, /*only_healthy=*/false);
  LoadReport report(session.server, absl::LocalTimeZone());
  const std::string footer = absl::StrFormat(
      "A sample every %g s. q or Ctrl-C quits.", flags.interval_seconds);
  const auto interval = std::chrono::duration_cast<SteadyClock::duration>(
      std::chrono::duration<double>(flags.interval_seconds));
  SteadyClock::time_point next = SteadyClock::now();
  bool was_reached = false;
  // The first answer may take a while.
  if (!flags.json) Draw(report, footer, session.screen);
  for (;;) {
    absl::Duration wait;
    if (!pending.valid()) {
      wait = absl::FromChrono(next - SteadyClock::now());
      if (wait <= absl::ZeroDuration()) {
        pending = std::async(std::launch::async, TakeSample, client);
        next = std::max(next + interval, SteadyClock::now());
      }
    }
    if (pending.valid() &&
        pending.wait_for(kInputPeriod) == std::future_status::ready) {
      LoadSample sample = pending.get();
      // An argument that is wrong stays so.
      if (absl::IsInvalidArgument(sample.info.status())) {
        return sample.info.status();
      }
      was_reached = was_reached || sample.info.ok();
      report.Add(std::move(sample));
      if (!flags.json) {
        Draw(report, footer, session.screen);
      } else {
        session.screen.PrintJsonLine(report.ToJson());
        // RunAttnctl prints the error.
        if (!session.screen.Flush().ok()) return kOk;
      }
    }
    switch (input.Wait(wait)) {
      case UserInput::Event::kNone:
        break;
      case UserInput::Event::kQuit:
        return was_reached ? kOk : kUnavailable;
      case UserInput::Event::kSuspend:
        alternate.reset();
        input.Suspend();
        alternate.emplace(session.screen);
        Draw(report, footer, session.screen);
        break;
      case UserInput::Event::kResize:
        Draw(report, footer, session.screen);
        break;
    }
  }
}

ExitCode RunTop(const TopFlags& flags, Session& session) {
  const char* const terminal = std::getenv("TERM");
  const bool draws = session.screen.out_is_terminal() && terminal != nullptr &&
                     terminal != std::string("dumb");
  if (flags.once || (!flags.json && !draws)) return RunOnce(flags, session);
  const absl::StatusOr<ExitCode> code = RunLive(flags, session);
  return code.ok() ? *code : session.CallError(code.status());
}

}  // namespace

void AddTopCommand(CLI::App& app, Session& session) {
  CLI::App* command = app.add_subcommand(
      "top",
      "Watch the load of a server: slots, memory, queue, and the rates of each "
      "method");
  auto flags = std::make_shared<TopFlags>();
  AddNumberFlag(*command, "--interval", flags->interval_seconds,
                "time between two samples, and the time that rates cover; from "
                "0.1 to 86400")
      ->default_str("2")
      ->type_name("SECONDS")
      ->check([](const std::string& text) {
        double seconds = 0;
        const bool wrong = absl::SimpleAtod(text, &seconds) &&
                           !(seconds >= 0.1 && seconds <= 86'400);
        return wrong ? absl::StrCat("expected 0.1 to 86400, got ", text) : "";
      });
  command->add_flag("--once", flags->once,
                    "take two samples, print the second one with the rates of "
                    "the interval between them, and exit");
  command->add_flag("--json", flags->json,
                    "print JSON: one object with --once, otherwise one line "
                    "for each sample");
  command->footer(
      "On a terminal, top draws the load on the whole screen at each "
      "interval,\n"
      "until you press q or Ctrl-C. If the server does not answer, top says\n"
      "since when, and keeps trying; the exit code is 4 if it never "
      "answered.\n"
      "If standard output is not a terminal, top prints the load once, as\n"
      "--once does, unless --json is given.\n"
      "\n"
      "  threads, slots, memory, connections\n"
      "               how much is in use now. A slot is a request that runs "
      "or\n"
      "               waits (attnd --max-in-flight)\n"
      "  calls/s      calls that ended, also with an error, per second\n"
      "  failed/s     calls that ended with an error, per second\n"
      "  queue ms     how long a call that succeeded waited for worker "
      "threads,\n"
      "               on average\n"
      "  compute ms   how long it was computed, on average\n"
      "  total ms     how long the server had a call, from its first byte to "
      "its\n"
      "               end, on average\n"
      "  calls        calls that have ended since the server started\n"
      "\n"
      "The first screen has the averages since the server started. top "
      "watches\n"
      "one server: if an address leads to several ones, they take turns.\n"
      "Examples:\n"
      "  attnctl top --server=unix:/run/attnd/attnd.sock\n"
      "  attnctl top --once --interval=10\n"
      "  attnctl top --once --json | jq .rates.all.mean_queue_time_ms\n"
      "  attnctl top --json --interval=60 >> load.jsonl\n");
  command->callback(
      [flags, &session] { session.exit_code = RunTop(*flags, session); });
}

}  // namespace attnd::attnctl
