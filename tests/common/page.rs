//! The examples on the pages of the documentation.

/// A command of a page, where it stands, and what it prints.
pub struct Example {
    pub line: usize,
    pub command: String,
    pub output: String,
}

/// The commands of a page. Those that need a service beside the mount stand in blocks `console service`.
pub fn examples(page: &str, with_service: bool) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut inside = false;
    for (number, line) in page.lines().enumerate() {
        match line {
            "```console" => inside = true,
            "```console service" => inside = with_service,
            "```" => inside = false,
            _ if !inside => {}
            line => match line.strip_prefix("$ ") {
                Some(command) => {
                    examples.push(Example { line: number + 1, command: command.to_owned(), output: String::new() });
                }
                None => {
                    let Example { output, .. } = examples.last_mut().expect("output follows a command");
                    output.push_str(line);
                    output.push('\n');
                }
            },
        }
    }
    examples
}

/// The blocks of a page in a language, such as `yaml`.
pub fn blocks(page: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    page.split(&fence).skip(1).filter_map(|rest| rest.split_once("```")).map(|(block, _)| block.to_owned()).collect()
}
