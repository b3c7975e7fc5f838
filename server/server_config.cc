#include "server/server_config.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <istream>
#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "base/command_line.h"
#include "core/machine.h"
#include "server/tracing/span_exporter.h"
#include "server/version.h"
#include "wire/message_sizes.h"

namespace attnd::server {
namespace {

constexpr absl::string_view kCheckConfig = "check-config";
constexpr absl::string_view kPrintConfig = "print-config";
constexpr absl::string_view kEnvironmentPrefix = "ATTND_";
constexpr absl::string_view kAdminListen = "admin-listen";
constexpr absl::string_view kConfig = "config";

constexpr char kDescription[] =
    "attnd: exact attention as a gRPC service (attnd.v1.AttentionService),\n"
    "with health checks and reflection.";

constexpr char kFooter[] = R"(
You can also set each option as an environment variable
(ATTND_MAX_IN_FLIGHT=64) or as a key in the file that --config names
(max-in-flight = 64). A flag takes precedence over the variable, and the
variable over the file.

Examples:
  attnd
  attnd --listen=127.0.0.1:0,unix:/run/attnd.sock --address-file=/run/attnd.addr
  attnd --threads=4 --memory-budget-bytes=4294967296
  attnd --config=attnd.toml --check-config

SIGTERM, SIGINT and SIGQUIT drain the server: it reports NOT_SERVING, refuses
new calls, finishes the running calls and exits with code 0. After SIGTERM, it
serves for the time of --drain-announce before it refuses calls. A second signal
cancels the running calls. SIGHUP reads the files of certificates and tokens
again. SIGUSR1 switches the log level to debug, and back. docs/configuration.md
says when to change each option.)";

constexpr int64_t kInt64Max = std::numeric_limits<int64_t>::max();
constexpr double kMinSeconds = 1e-3;
constexpr double kMaxDrainSeconds = 86400;
constexpr double kMaxIdleSeconds = 86400;
constexpr double kMaxConnectionSeconds = 7 * 86400;
constexpr double kMaxBenchmarkSeconds = 86400;
constexpr int64_t kMaxConnections = 1 << 20;
constexpr int64_t kMaxVectors = 1 << 24;

// Accepts 0, and times from a millisecond to `highest` seconds. CLI11's own
// range accepts NaN, which compares as neither too small nor too large.
CLI::Validator Seconds(double highest) {
  const std::string range =
      absl::StrCat("0, or ", kMinSeconds, " to ", highest);
  const auto check = [range, highest](const std::string& text) -> std::string {
    double seconds = 0;
    if (absl::SimpleAtod(text, &seconds) &&
        (seconds == 0 || (seconds >= kMinSeconds && seconds <= highest))) {
      return "";
    }
    return absl::StrCat("expected ", range, " seconds, got ", text);
  };
  return {check, range};
}

// Accepts whole numbers in plain decimal. CLI11's own conversion replaces a
// number that is too large by the largest one, and reads 010 as 8.
CLI::Validator WholeNumber(int64_t lowest, int64_t highest) {
  const std::string range = absl::StrCat(lowest, " to ", highest);
  const auto check = [range, lowest, highest](const std::string& text) {
    int64_t number = 0;
    if (absl::SimpleAtoi(text, &number) && absl::StrCat(number) == text &&
        number >= lowest && number <= highest) {
      return std::string();
    }
    return absl::StrCat("expected a whole number from ", range, ", got ", text);
  };
  return {check, range};
}

// Reads the mode of a file in octal, as chmod does: 660, 0660 or 0o660.
std::optional<mode_t> SocketModeOf(absl::string_view digits) {
  absl::ConsumePrefix(&digits, "0o");
  mode_t mode = 0;
  const bool octal =
      !digits.empty() && digits.size() <= 4 &&
      std::all_of(digits.begin(), digits.end(), [&mode](char digit) {
        mode = mode * 8 + static_cast<mode_t>(digit - '0');
        return digit >= '0' && digit <= '7';
      });
  // A number without the owner's bits is most likely a decimal one, because
  // YAML reads 0660 as 432.
  if (octal && mode <= 0777 && (mode & 0600) == 0600) return mode;
  return std::nullopt;
}

CLI::Validator SocketMode() {
  const auto check = [](const std::string& text) -> std::string {
    if (SocketModeOf(text)) return "";
    return absl::StrCat(
        "expected an octal number from 0600 to 0777 that lets the server's own "
        "user read and write, such as 0600, 0660 or 0666 (in YAML, put it in "
        "quotes), got ",
        text);
  };
  return {check, "0600 to 0777, octal"};
}

// Accepts one of `words`.
CLI::Validator OneOf(const std::vector<std::string>& words) {
  const auto check = [words](const std::string& text) -> std::string {
    if (std::find(words.begin(), words.end(), text) != words.end()) return "";
    return absl::StrCat(
        "expected ", absl::StrJoin(words.begin(), words.end() - 1, ", "),
        " or ", words.back(), ", got ", text.empty() ? "nothing" : text);
  };
  return {check, absl::StrJoin(words, ", ")};
}

// Refuses otlp in a build that has no OpenTelemetry.
CLI::Validator CanExport() {
  const auto check = [](const std::string& text) -> std::string {
    if (text != "otlp" || SpanExporter::IsBuiltIn()) return "";
    return "expected none, because this build of attnd has no OpenTelemetry "
           "(build it where CMake finds opentelemetry-cpp), got otlp";
  };
  return {check, ""};
}

void AddCapacityOptions(CLI::App& app, ServerConfig& config) {
  app.add_option("--threads", config.threads,
                 "The number of compute threads. 0 = as many as the cgroup "
                 "quota and the CPU affinity allow, rounded down, at least 1")
      ->check(WholeNumber(0, kMaxThreads));
  app.add_option("--max-message-bytes", config.max_message_bytes,
                 "The size of the largest request and of the largest response. "
                 "Clients have a limit of their own, which they have to raise "
                 "as well")
      ->check(WholeNumber(kMinMessageLimitBytes, kMaxMessageLimitBytes));
  app.add_option("--memory-budget-bytes", config.memory_budget_bytes,
                 "The memory that all requests together can hold: messages, "
                 "tensors and workspace. 0 = the limit of the cgroup or the "
                 "physical memory, minus what the server needs for itself and "
                 "for messages that are not admitted yet (1 GiB leaves 512 "
                 "MiB, and 2 GiB leaves 1280 MiB)")
      ->check(WholeNumber(0, kInt64Max));
  app.add_option("--max-in-flight", config.max_in_flight,
                 "How many requests can run or wait at the same time. The "
                 "server refuses further requests at once and tells clients "
                 "when to retry. While one client has all of them, others "
                 "still get their share, up to twice this number in total")
      ->check(WholeNumber(1, kInt64Max));
  app.add_option("--max-connections", config.max_connections,
                 "How many connections clients can have open at the same time. "
                 "When a client opens one more, the server closes an idle one, "
                 "or the new one if none is idle. 0 = as many as the limit of "
                 "open files and the memory allow")
      ->check(WholeNumber(0, kMaxConnections));
  app.add_option(
         "--stream-idle-timeout", config.stream_idle_timeout_s,
         "While a call waits for its client, the client has to send or read at "
         "least 64 KiB, or complete what the server waits for, within this "
         "many seconds. Otherwise the server ends the call. 0 = no limit")
      ->check(Seconds(kMaxIdleSeconds));
  app.add_option("--max-connection-age", config.max_connection_age_s,
                 "After this many seconds, the server asks a client to open a "
                 "new connection, so that the client can find new servers. Its "
                 "calls finish on the old connection. 0 = never")
      ->check(Seconds(kMaxConnectionSeconds));
  app.add_option("--max-benchmark-vectors", config.max_benchmark_vectors,
                 "The largest num_vectors that Benchmark accepts. It also "
                 "limits the work of one call")
      ->check(WholeNumber(1, kMaxVectors));
  app.add_option("--max-benchmark-seconds", config.max_benchmark_s,
                 "How many seconds one Benchmark can take. When the time is "
                 "up, it returns what it has measured. 0 = no limit")
      ->check(Seconds(kMaxBenchmarkSeconds));
}

void AddAccessOptions(CLI::App& app, AccessOptions& access) {
  app.add_option(
      "--tls-cert", access.tls.cert,
      "A file with the server's certificate and then intermediate "
      "ones, in PEM. It turns on TLS for TCP connections. The server "
      "reads this file and the next three again when they change");
  app.add_option("--tls-key", access.tls.key,
                 "The file with the private key of --tls-cert, in PEM");
  app.add_option("--tls-client-ca", access.tls.client_ca,
                 "A file with certificates in PEM. Clients that use TLS then "
                 "need a certificate that one of these has signed");
  app.add_option(
      "--token-file", access.token_file,
      "A file with a line NAME SHA256 ROLE for each token. Each call "
      "except health checks then needs the metadata authorization: "
      "Bearer TOKEN. SHA256 is the hash of a token, and ROLE is user, "
      "or admin for those who may call Benchmark as well");
}

void AddSharedMemoryOptions(CLI::App& app, ServerConfig& config) {
  app.add_option("--shm-socket", config.shm_socket,
                 "The path of a unix socket on which clients on this host "
                 "register memory, so that they do not have to send tensors. "
                 "Without this option, shared memory is off");
  app.add_option("--shm-allow-uids", config.shm_allow_uids,
                 "The uids whose processes can use the socket of --shm-socket, "
                 "separated by commas. Without this option, --socket-mode "
                 "decides")
      ->delimiter(',')
      ->check(WholeNumber(0, std::numeric_limits<uint32_t>::max()));
  app.add_option("--shm-quota-bytes", config.shm_quota_bytes,
                 "How many bytes of memory the regions of one uid can have in "
                 "total. 0 = the memory budget")
      ->check(WholeNumber(0, kInt64Max));
}

// Returns the options, bound to `config` and `action`. An app can parse one
// command line.
std::unique_ptr<CLI::App> MakeApp(ServerConfig& config,
                                  CommandLine::Action& action) {
  auto app = std::make_unique<CLI::App>(kDescription, "attnd");
  app->footer(kFooter);
  app->option_defaults()->always_capture_default();
  app->add_option("--listen", config.listen,
                  "The addresses that clients connect to, separated by commas: "
                  "host:port or unix:PATH. Port 0 selects a free port")
      ->delimiter(',');
  app->add_option(
      "--admin-listen", config.admin_listen,
      "The address of the admin port, host:port. It answers HTTP "
      "requests for health, metrics, memory estimates and the "
      "server's state, and has a page for capacity planners. Whoever can "
      "connect can read them. Port 0 selects a free port, and an "
      "empty value turns the port off");
  app->add_option("--address-file", config.address_file,
                  "A file to which the server writes the addresses that it "
                  "listens on, one per line, as soon as it serves clients");
  app->add_option_function<std::string>(
         "--socket-mode",
         [&config](const std::string& text) {
           config.socket_mode = SocketModeOf(text).value_or(0);
         },
         "The file mode of the unix sockets of --listen and --shm-socket, in "
         "octal. A client that can write to the file can connect. 0600 lets in "
         "only the server's own user and root, 0660 also the group of the file")
      ->check(SocketMode())
      ->default_str("0600");
  AddAccessOptions(*app, config.access);
  AddCapacityOptions(*app, config);
  AddSharedMemoryOptions(*app, config);
  app->add_option("--drain-announce", config.drain_announce_s,
                  "For how many seconds after SIGTERM the server reports "
                  "NOT_SERVING but still serves every call, so that clients "
                  "and load balancers find other servers. Then it drains")
      ->check(Seconds(kMaxDrainSeconds));
  app->add_option("--drain-timeout", config.drain_timeout_s,
                  "How many seconds running requests can take to finish in a "
                  "drain, before the server cancels them")
      ->check(Seconds(kMaxDrainSeconds));
  app->add_option("--log-level", config.log_level,
                  "The least important messages that the server writes to "
                  "stderr. debug writes a line for each request")
      ->check(OneOf({"debug", "info", "warning", "error"}));
  app->add_option("--log-format", config.log_format,
                  "The format of the log: text for people, or json for "
                  "programs, with one object per line")
      ->check(OneOf({"text", "json"}));
  app->add_option("--trace-export", config.trace_export,
                  "Where spans of calls go whose clients send a sampled "
                  "traceparent: none, or otlp for the collector that "
                  "OTEL_EXPORTER_OTLP_ENDPOINT names")
      ->check(OneOf({"none", "otlp"}))
      ->check(CanExport());
  app->set_config("--config", "",
                  "A file of key = value lines (TOML or INI), such as "
                  "max-in-flight = 64")
      ->configurable(false);
  app->allow_config_extras(CLI::config_extras_mode::error);
  CLI::Option* check = app->add_flag_callback(
      absl::StrCat("--", kCheckConfig),
      [&action] { action = CommandLine::Action::kCheckConfig; },
      "Check the options and what they name, print \"ok\" or every error, and "
      "exit. Opens no port and writes no file");
  CLI::Option* print = app->add_flag_callback(
      absl::StrCat("--", kPrintConfig),
      [&action] { action = CommandLine::Action::kPrintConfig; },
      "Print every option with its value and where the value comes from, as a "
      "file for --config, and exit");
  check->configurable(false)->excludes(print);
  print->configurable(false);
  app->set_version_flag("--version", absl::StrCat("attnd ", kVersion));
  return app;
}

// Makes each check of a value add its error to `errors` and accept the value,
// because CLI11 ends at the first error. An option with an error gets a value
// that it accepts.
void CollectErrors(CLI::App& app, std::vector<std::string>& errors) {
  for (CLI::Option* option : app.get_options()) {
    CLI::Validator* validator = nullptr;
    try {
      validator = option->get_validator(0);
    } catch (const CLI::OptionNotFound&) {
      continue;  // it accepts every text
    }
    validator->non_modifying(false);
    validator->operation([check = *validator, option,
                          &errors](std::string& text) -> std::string {
      const std::string error = check(text);
      if (error.empty()) return "";
      errors.push_back(absl::StrCat(option->get_name(), ": ", error));
      text = option->get_default_str();
      if (!check(text).empty()) text = "0";  // an element of an empty list
      return "";
    });
  }
}

// Whether a key of a file looks like the name of an option. Otherwise the file
// is probably not one of options, and what it has can be secret.
bool LooksLikeName(absl::string_view key) {
  constexpr size_t kLongestName = 40;
  return !key.empty() && key.size() <= kLongestName &&
         std::all_of(key.begin(), key.end(), [](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
                  absl::StrContains("_-.: ", c);
         });
}

// Reads files as CLI11 does, but adds an error for each key that names no
// option, because CLI11 ends at the first one.
class ConfigFile : public CLI::ConfigBase {
 public:
  explicit ConfigFile(std::vector<std::string>& errors) : errors_(errors) {}

  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    std::vector<CLI::ConfigItem> entries = CLI::ConfigBase::from_config(input);
    const std::vector<std::string> options = OptionNames();
    bool is_other_file = false;
    std::vector<std::string> unknown;
    const auto is_unknown = [&](const CLI::ConfigItem& item) {
      // These stand for the begin and the end of a section.
      if (item.name == "++" || item.name == "--") return true;
      const std::string name = item.fullname();
      if (name != kConfig &&
          std::find(options.begin(), options.end(), name) != options.end()) {
        return false;
      }
      if (!LooksLikeName(name)) {
        is_other_file = true;
        return true;
      }
      unknown.push_back(absl::StrCat(
          "--config: ", name,
          " is not an option: expected a name from attnd --help, without the "
          "dashes, and no sections"));
      return true;
    };
    entries.erase(std::remove_if(entries.begin(), entries.end(), is_unknown),
                  entries.end());
    if (is_other_file) {
      unknown.assign(
          1,
          "--config: expected a text file of lines such as max-in-flight = 64, "
          "without a byte order mark, got a line that does not begin with a "
          "name (it is not shown here, because it could be secret)");
    }
    errors_.insert(errors_.end(), unknown.begin(), unknown.end());
    return entries;
  }

 private:
  std::vector<std::string>& errors_;
};

std::string EnvironmentName(absl::string_view option) {
  return absl::StrCat(
      kEnvironmentPrefix,
      absl::AsciiStrToUpper(absl::StrReplaceAll(option, {{"-", "_"}})));
}

bool IsGiven(const std::string& option, const std::vector<std::string>& args) {
  const std::string flag = absl::StrCat("--", option);
  return std::any_of(args.begin(), args.end(), [&](const std::string& arg) {
    return arg == flag || absl::StartsWith(arg, absl::StrCat(flag, "="));
  });
}

// Returns the variable that sets `option`, or nullptr if none does. An empty
// variable sets no option, because scripts leave variables empty that they do
// not need. But an empty ATTND_ADMIN_LISTEN turns off the admin port, because
// no other value of the variable can.
const std::string* VariableOf(absl::string_view option,
                              const Environment& environment) {
  const auto entry = environment.find(EnvironmentName(option));
  if (entry == environment.end()) return nullptr;
  return entry->second.empty() && option != kAdminListen ? nullptr
                                                         : &entry->second;
}

// Adds a flag for each variable whose flag is not given. CLI11's own support of
// the environment would give the file precedence over the variables.
std::vector<std::string> WithEnvironment(const std::vector<std::string>& args,
                                         const Environment& environment) {
  std::vector<std::string> all;
  for (const std::string& option : OptionNames()) {
    const std::string* value = VariableOf(option, environment);
    if (value == nullptr || IsGiven(option, args)) continue;
    all.push_back(absl::StrCat("--", option, "=", *value));
  }
  all.insert(all.end(), args.begin(), args.end());
  return WithEmptyValuesApart(all);
}

// Returns what `app` has parsed.
std::vector<Setting> SettingsOf(const CLI::App& app,
                                const std::vector<std::string>& args,
                                const Environment& environment) {
  std::vector<Setting> settings;
  for (const std::string& name : OptionNames()) {
    if (name == kConfig) continue;
    const CLI::Option* option = app.get_option(absl::StrCat("--", name));
    Setting setting{.option = name,
                    .values = option->results(),
                    .is_list = option->get_items_expected_max() > 1,
                    .source = ""};
    if (IsGiven(name, args)) {
      setting.source = absl::StrCat("flag --", name);
    } else if (VariableOf(name, environment) != nullptr) {
      setting.source = absl::StrCat("variable ", EnvironmentName(name));
    } else if (option->count() > 0) {
      setting.source =
          absl::StrCat("file ", app.get_config_ptr()->as<std::string>());
    } else {
      setting.source = "default";
      const std::string text = option->get_default_str();
      if (setting
              .is_list) {  // CLI11 writes ["a","b"], and {} for an empty list
        setting.values =
            absl::StrSplit(text, absl::ByAnyChar("[]{},\""), absl::SkipEmpty());
      } else {
        setting.values = {text};
      }
    }
    settings.push_back(std::move(setting));
  }
  return settings;
}

bool IsIpAddress(absl::string_view text) {
  in6_addr ignored{};  // large enough for an IPv4 address as well
  const std::string terminated(text);
  return inet_pton(AF_INET, terminated.c_str(), &ignored) == 1 ||
         inet_pton(AF_INET6, terminated.c_str(), &ignored) == 1;
}

// Whether Kubernetes has set the variable, for a Service whose name begins with
// attnd. For a Service attnd-x it sets ATTND_X_SERVICE_HOST to an address,
// ATTND_X_PORT to a URL such as tcp://10.0.0.1:50051, ATTND_X_SERVICE_PORT to
// the port of that URL, and more variables whose names begin with ATTND_X_PORT_
// or ATTND_X_SERVICE_PORT_. The URL distinguishes them from variables that a
// user has set.
bool IsServiceLink(absl::string_view name, absl::string_view value,
                   const Environment& environment) {
  if (absl::EndsWith(name, "_SERVICE_HOST")) return IsIpAddress(value);
  for (const absl::string_view kind : {"_SERVICE_PORT", "_PORT"}) {
    const size_t at = name.find(kind);
    if (at == absl::string_view::npos) continue;
    const auto link =
        environment.find(absl::StrCat(name.substr(0, at), "_PORT"));
    if (link == environment.end() || !absl::StrContains(link->second, "://")) {
      continue;
    }
    const absl::string_view rest = name.substr(at + kind.size());
    if (!rest.empty()) return rest.front() == '_';
    return kind == "_PORT" ||
           absl::EndsWith(link->second, absl::StrCat(":", value));
  }
  return false;
}

// Adds an error for each option that has no effect without another one. Its
// user expects protection that is not there.
void CheckCombinations(const ServerConfig& config,
                       std::vector<std::string>& errors) {
  if (!config.shm_allow_uids.empty() && config.shm_socket.empty()) {
    errors.emplace_back(
        "--shm-allow-uids: expected --shm-socket as well, because the uids are "
        "those that can use its socket, got none");
  }
  const bool has_tcp = std::any_of(
      config.listen.begin(), config.listen.end(), [](const std::string& text) {
        const auto address = ListenAddress::Parse(text);
        // Server::Start reports an address that is wrong.
        return !address.ok() || !address->is_unix();
      });
  if (!config.access.tls.cert.empty() && !has_tcp) {
    errors.push_back(absl::StrCat(
        "--tls-cert: expected a TCP address in --listen as well, because unix "
        "sockets have no TLS, got ",
        absl::StrJoin(config.listen, ",")));
  }
}

}  // namespace

absl::StatusOr<CommandLine> ParseConfig(const std::vector<std::string>& args,
                                        const Environment& environment) {
  CommandLine line;
  std::vector<std::string> errors;
  const std::unique_ptr<CLI::App> app = MakeApp(line.config, line.action);
  CollectErrors(*app, errors);
  app->config_formatter(std::make_shared<ConfigFile>(errors));
  std::vector<std::string> all = WithEnvironment(args, environment);
  std::reverse(all.begin(), all.end());  // CLI11 takes them in reverse order
  try {
    app->parse(all);
  } catch (const CLI::CallForHelp&) {
    line.answer = app->help();
    return line;
  } catch (const CLI::CallForVersion& version) {
    line.answer = absl::StrCat(version.what(), "\n");
    return line;
  } catch (const CLI::FileError& error) {
    errors.push_back(absl::StrCat("--config: ", error.what()));
  } catch (const CLI::Error& error) {
    errors.emplace_back(error.what());
  }
  if (errors.empty()) CheckCombinations(line.config, errors);
  if (!errors.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        absl::StrJoin(errors, "\n"), " (attnd --help describes each option)"));
  }
  line.settings = SettingsOf(*app, args, environment);
  return line;
}

Environment EnvironmentOf(const char* const* entries) {
  Environment environment;
  for (; *entries != nullptr; ++entries) {
    const absl::string_view entry = *entries;
    const size_t equals = entry.find('=');
    if (!absl::StartsWith(entry, kEnvironmentPrefix) ||
        equals == absl::string_view::npos) {
      continue;
    }
    environment.emplace(entry.substr(0, equals), entry.substr(equals + 1));
  }
  return environment;
}

std::vector<std::string> OptionNames() {
  CommandLine ignored;
  const std::unique_ptr<CLI::App> app = MakeApp(ignored.config, ignored.action);
  std::vector<std::string> names;
  for (const CLI::Option* option : app->get_options()) {
    const std::string name = option->get_single_name();
    if (name != "help" && name != "version" && name != kCheckConfig &&
        name != kPrintConfig) {
      names.push_back(name);
    }
  }
  return names;
}

std::vector<std::string> UnknownVariables(const Environment& environment) {
  std::set<std::string> known = {"ATTND_SERVER"};
  for (const std::string& option : OptionNames()) {
    known.insert(EnvironmentName(option));
  }
  std::vector<std::string> unknown;
  for (const auto& [name, value] : environment) {
    if (known.count(name) == 0 && !IsServiceLink(name, value, environment)) {
      unknown.push_back(name);
    }
  }
  return unknown;
}

int64_t DescriptorsForConnections(int64_t descriptors) {
  constexpr int64_t kOwnDescriptors = 128;
  return descriptors - std::min(kOwnDescriptors, descriptors / 2);
}

int64_t DefaultConnections(const MemoryShares& shares, int64_t descriptors,
                           bool tls) {
  // Measured with gRPC 1.51 and OpenSSL 3.0: 8 KiB in plain text, 80 KiB with
  // TLS, and 100 KiB if the client has a certificate.
  const int64_t connection_bytes = (tls ? 128 : 16) << 10;
  return std::clamp<int64_t>(shares.arriving_bytes / 4 / connection_bytes, 1,
                             DescriptorsForConnections(descriptors));
}

absl::StatusOr<int64_t> MaxConnections(const ServerConfig& config,
                                       const MemoryShares& shares,
                                       int64_t descriptors) {
  const int64_t highest = DescriptorsForConnections(descriptors);
  if (config.max_connections > highest) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--max-connections: expected at most ", highest,
        ", because the process may have ", descriptors, " open files, got ",
        config.max_connections,
        ": ask for fewer, or raise the limit of open files (ulimit -Hn)"));
  }
  if (config.max_connections > 0) return config.max_connections;
  return DefaultConnections(shares, descriptors,
                            !config.access.tls.cert.empty());
}

MemoryShares SharesOf(const ServerConfig& config) {
  return ShareMemory({.budget_bytes = config.memory_budget_bytes,
                      .max_message_bytes = config.max_message_bytes},
                     AvailableMemoryBytes());
}

}  // namespace attnd::server
