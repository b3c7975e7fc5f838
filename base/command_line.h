// Prepares a command line for CLI11.
#ifndef ATTND_BASE_COMMAND_LINE_H_
#define ATTND_BASE_COMMAND_LINE_H_

#include <string>
#include <vector>

namespace attnd {

// Returns `args` with each "--flag=" replaced by two arguments: "--flag" and an
// empty one. CLI11 2.1 takes what follows "--flag=" as its value, even if that
// is another flag.
inline std::vector<std::string> WithEmptyValuesApart(
    const std::vector<std::string>& args) {
  std::vector<std::string> apart;
  for (const std::string& arg : args) {
    if (arg.size() > 3 && arg.starts_with("--") &&
        arg.find('=') == arg.size() - 1) {
      apart.push_back(arg.substr(0, arg.size() - 1));
      apart.emplace_back();
    } else {
      apart.push_back(arg);
    }
  }
  return apart;
}

}  // namespace attnd

#endif  // ATTND_BASE_COMMAND_LINE_H_
