"""The vocabulary of job fit: skills with their synonyms, occupations, seniority words, numbers.

Plain data, without torch: `tasks.requirements` reads texts with it, `data.sample` writes texts with it.
"""

from dataclasses import dataclass

# The formatter would put each word on a line of its own.
# fmt: off

SKILLS: dict[str, tuple[str, ...]] = {
    # programming languages
    "Python": ("Python 3",),
    "Java": ("JVM development",),
    "JavaScript": ("ECMAScript", "vanilla JS"),
    "TypeScript": ("typed JavaScript",),
    "Go": ("Golang",),
    "Rust": ("Rust programming",),
    "C++": ("C++17", "C++20", "cpp"),
    "R": ("R programming", "RStudio"),
    "Kotlin": ("Kotlin for Android",),
    "Swift": ("Swift for iOS",),
    "Bash": ("shell scripting", "shell scripts"),
    # back end
    "REST APIs": ("REST API", "RESTful APIs", "RESTful API", "RESTful services"),
    "GraphQL": ("GraphQL APIs",),
    "gRPC": ("protobuf services",),
    "Microservices": ("microservice architecture", "micro-services"),
    "Distributed Systems": ("distributed computing",),
    "Django": ("Django REST framework",),
    "Flask": ("Flask API",),
    "FastAPI": ("Fast API",),
    "Spring Boot": ("Spring framework",),
    "Node.js": ("NodeJS", "Node JS"),
    "Kafka": ("Apache Kafka", "event streaming"),
    "RabbitMQ": ("AMQP queues",),
    "Redis": ("Redis caching",),
    # databases
    "SQL": ("relational queries",),
    "NoSQL": ("document databases",),
    "PostgreSQL": ("Postgres", "psql"),
    "MySQL": ("MariaDB",),
    "MongoDB": ("Mongo",),
    "Elasticsearch": ("Elastic Search", "OpenSearch"),
    # front end and mobile
    "React": ("React.js", "ReactJS"),
    "React Native": ("RN apps",),
    "Vue": ("Vue.js", "VueJS"),
    "Angular": ("AngularJS",),
    "CSS": ("Sass", "Tailwind"),
    "HTML": ("HTML5", "semantic markup"),
    "Accessibility": ("a11y", "WCAG"),
    "UI Testing": ("Cypress", "Playwright"),
    "Jetpack Compose": ("Compose UI",),
    "Mobile Releases": ("app store releases", "Play Store releases"),
    # operations
    "Docker": ("containerisation", "containerization", "Docker Compose"),
    "Kubernetes": ("k8s", "EKS", "GKE"),
    "Terraform": ("infrastructure as code", "IaC"),
    "Ansible": ("configuration management",),
    "AWS": ("Amazon Web Services",),
    "Azure": ("Microsoft cloud",),
    "Google Cloud": ("GCP",),
    "Linux": ("Unix administration", "Linux administration"),
    "CI/CD": ("continuous integration", "GitHub Actions", "build pipelines"),
    "Monitoring": ("observability", "Prometheus", "Grafana"),
    "Incident Response": ("on-call rotations", "incident handling"),
    "Networking": ("TCP/IP", "network administration"),
    "Git": ("version control",),
    # data and machine learning
    "Machine Learning": ("ML models", "predictive models"),
    "Deep Learning": ("neural networks", "deep neural networks"),
    "PyTorch": ("torch models",),
    "TensorFlow": ("Keras",),
    "Scikit-learn": ("sklearn",),
    "Pandas": ("data frames",),
    "Spark": ("PySpark", "Apache Spark"),
    "Airflow": ("Apache Airflow", "DAG scheduling"),
    "dbt": ("data build tool",),
    "ETL": ("ELT", "data pipelines"),
    "Data Modelling": ("data modeling", "star schemas"),
    "Data Quality": ("data validation",),
    "Snowflake": ("Snowflake warehouse",),
    "Statistics": ("statistical modelling", "statistical analysis", "hypothesis testing"),
    "A/B Testing": ("split tests", "online experiments", "A/B tests"),
    "Causal Inference": ("uplift modelling",),
    "Time Series": ("time series forecasting", "demand forecasting"),
    "Data Analysis": ("exploratory analysis", "data analytics"),
    "Data Visualization": ("data visualisation", "dashboards", "Matplotlib"),
    "Tableau": ("Tableau reports",),
    "Power BI": ("PowerBI",),
    "NLP": ("natural language processing", "text mining"),
    "Computer Vision": ("image recognition", "object detection"),
    "Recommendation Systems": ("recommender systems", "RecSys", "collaborative filtering"),
    "Information Retrieval": ("search ranking", "learning-to-rank"),
    "LLM": ("LLMs", "large language models"),
    "Prompt Engineering": ("prompt design",),
    "RAG": ("retrieval-augmented generation",),
    "Vector Databases": ("vector search", "FAISS"),
    "Transformers": ("BERT", "Hugging Face"),
    "Fine-tuning": ("finetuning", "fine-tuned"),
    "Reinforcement Learning": ("RLHF", "policy optimization"),
    "MLOps": ("model deployment", "MLflow"),
    "GPU Programming": ("CUDA",),
    # security
    "Threat Modelling": ("threat modeling", "attack trees"),
    "Penetration Testing": ("pen testing", "red teaming"),
    "SIEM": ("Splunk", "log correlation"),
    "Vulnerability Management": ("vulnerability scanning", "patch management"),
    "Identity Management": ("IAM", "single sign-on"),
    "ISO 27001": ("security audits",),
    "Cryptography": ("PKI", "key management"),
    "Malware Analysis": ("reverse engineering",),
    # nursing
    "Triage": ("patient prioritisation",),
    "Wound Care": ("dressing changes", "wound management"),
    "IV Therapy": ("intravenous therapy", "infusions"),
    "Medication Administration": ("drug rounds", "medication rounds"),
    "Electronic Health Records": ("EHR", "electronic charting"),
    "Basic Life Support": ("BLS", "CPR"),
    "Patient Education": ("discharge counselling",),
    "Infection Control": ("infection prevention", "aseptic technique"),
    "Palliative Care": ("end-of-life care",),
    "Paediatric Care": ("paediatrics", "pediatric care"),
    # accounting
    "Month-end Closing": ("monthly close", "period-end close"),
    "Accounts Payable": ("supplier invoices", "AP ledger"),
    "Accounts Receivable": ("customer invoicing", "AR ledger"),
    "Payroll": ("salary runs", "wage processing"),
    "IFRS": ("international reporting standards",),
    "Tax Returns": ("VAT returns", "tax filings"),
    "SAP": ("SAP FICO", "S/4HANA"),
    "Excel": ("spreadsheets", "pivot tables"),
    "Budgeting": ("budget planning", "cost forecasting"),
    "Reconciliation": ("bank reconciliations", "ledger matching"),
    # marketing
    "SEO": ("search engine optimisation", "search engine optimization"),
    "Paid Search": ("Google Ads", "PPC"),
    "Email Marketing": ("newsletters", "Mailchimp"),
    "Copywriting": ("ad copy", "landing page texts"),
    "Web Analytics": ("Google Analytics", "GA4"),
    "Content Strategy": ("editorial calendars", "content planning"),
    "Social Media": ("community management", "Instagram campaigns"),
    "CRM": ("Salesforce", "HubSpot"),
    "Brand Design": ("brand guidelines", "visual identity"),
    # mechanical engineering
    "CAD": ("SolidWorks", "CATIA"),
    "Finite Element Analysis": ("FEA", "Ansys"),
    "Tolerance Analysis": ("GD&T", "tolerance stacks"),
    "Injection Moulding": ("injection molding", "mould design"),
    "CNC Machining": ("milling and turning",),
    "Thermal Design": ("heat transfer analysis", "cooling design"),
    "FMEA": ("failure mode analysis",),
    "Rapid Prototyping": ("3D printing", "additive manufacturing"),
    "Sheet Metal Design": ("sheet metal parts",),
    "MATLAB": ("Simulink",),
}
"""Name of a skill -> its other spellings and the products that amount to it."""

ORDINARY_WORDS = frozenset(
    {"Go", "Rust", "R", "Swift", "React", "Spark", "Excel", "Flask", "Angular", "Compose UI", "Elastic Search", "RAG"}
)
"""Spellings that are also ordinary words: they count only in exactly this case ("go to market" isn't Go)."""


@dataclass(frozen=True, slots=True)
class Occupation:
    """A line of work: how it is called, where it is done, what it takes, and how people speak of doing it.

    `deeds` are phrases in the past tense with one {skill} each.
    """

    titles: tuple[str, ...]
    domains: tuple[str, ...]
    skills: tuple[str, ...]
    deeds: tuple[str, ...]


_SOFTWARE_DEEDS = (
    "shipped features with {skill}",
    "built internal tools around {skill}",
    "rewrote an old product using {skill}",
    "maintained a code base based on {skill}",
)
_DATA_DEEDS = (
    "delivered projects with {skill}",
    "answered product questions using {skill}",
    "built a pricing tool on {skill}",
    "cut costs thanks to {skill}",
)
_PLATFORM_DEEDS = (
    "ran production with {skill}",
    "was in charge of {skill}",
    "wrote the house rules for {skill}",
    "took care of {skill} for forty services",
)

OCCUPATIONS: tuple[Occupation, ...] = (
    Occupation(
        titles=("Backend Engineer", "Backend Developer", "API Engineer"),
        domains=("payments", "ticketing", "insurance claims", "hotel bookings"),
        skills=(
            "Python", "Java", "Go", "REST APIs", "GraphQL", "gRPC", "Microservices", "Django", "FastAPI", "Spring Boot",
            "Kafka", "RabbitMQ", "Redis", "SQL", "PostgreSQL", "MongoDB", "Docker",
        ),
        deeds=_SOFTWARE_DEEDS,
    ),
    Occupation(
        titles=("Frontend Engineer", "Frontend Developer", "Web Developer"),
        domains=("online shops", "travel portals", "news sites", "banking portals"),
        skills=(
            "JavaScript", "TypeScript", "React", "Vue", "Angular", "CSS", "HTML", "Accessibility", "UI Testing",
            "GraphQL", "Node.js", "REST APIs", "Git",
        ),
        deeds=_SOFTWARE_DEEDS,
    ),
    Occupation(
        titles=("Mobile Developer", "Mobile Engineer", "App Developer"),
        domains=("fitness apps", "car sharing", "food delivery", "mobile banking"),
        skills=(
            "Kotlin", "Swift", "React Native", "Jetpack Compose", "Mobile Releases", "REST APIs", "GraphQL",
            "UI Testing", "Accessibility", "CI/CD", "Git",
        ),
        deeds=_SOFTWARE_DEEDS,
    ),
    Occupation(
        titles=("Data Engineer", "Analytics Engineer", "Data Platform Engineer"),
        domains=("ad reporting", "smart meters", "freight tracking", "retail sales"),
        skills=(
            "Python", "SQL", "Spark", "Airflow", "dbt", "ETL", "Data Modelling", "Data Quality", "Snowflake", "Kafka",
            "PostgreSQL", "AWS", "Google Cloud", "Docker",
        ),
        deeds=_DATA_DEEDS,
    ),
    Occupation(
        titles=("Data Scientist", "Applied Scientist", "Decision Scientist"),
        domains=("fraud detection", "streaming media", "crop yields", "online grocery"),
        skills=(
            "Python", "R", "SQL", "Machine Learning", "Deep Learning", "PyTorch", "TensorFlow", "Scikit-learn",
            "Pandas", "Statistics", "A/B Testing", "Causal Inference", "Time Series", "NLP", "Computer Vision",
            "Recommendation Systems", "LLM", "MLOps", "Data Visualization",
        ),
        deeds=_DATA_DEEDS,
    ),
    Occupation(
        titles=("DevOps Engineer", "Site Reliability Engineer", "Platform Engineer"),
        domains=("video hosting", "telecoms", "public services", "game servers"),
        skills=(
            "Kubernetes", "Docker", "Terraform", "Ansible", "AWS", "Azure", "Google Cloud", "Linux", "CI/CD",
            "Monitoring", "Incident Response", "Networking", "Bash", "Python", "Go",
        ),
        deeds=_PLATFORM_DEEDS,
    ),
    Occupation(
        titles=("Security Analyst", "Security Engineer", "Information Security Specialist"),
        domains=("banking", "hospitals", "energy grids", "cloud hosting"),
        skills=(
            "Threat Modelling", "Penetration Testing", "SIEM", "Vulnerability Management", "Identity Management",
            "ISO 27001", "Cryptography", "Malware Analysis", "Incident Response", "Networking", "Linux", "Python",
        ),
        deeds=(
            "closed audit findings through {skill}",
            "set up {skill} for two subsidiaries",
            "owned {skill} in daily work",
            "documented {skill} for the auditors",
        ),
    ),
    Occupation(
        titles=("Registered Nurse", "Ward Nurse", "Staff Nurse"),
        domains=("surgery", "geriatrics", "emergency rooms", "oncology"),
        skills=(
            "Triage", "Wound Care", "IV Therapy", "Medication Administration", "Electronic Health Records",
            "Basic Life Support", "Patient Education", "Infection Control", "Palliative Care", "Paediatric Care",
        ),
        deeds=(
            "handled {skill} on a busy ward",
            "was responsible for {skill}",
            "practised {skill} on night shifts",
            "passed every assessment in {skill}",
        ),
    ),
    Occupation(
        titles=("Accountant", "Financial Accountant", "Finance Specialist"),
        domains=("retail chains", "construction", "logistics", "charities"),
        skills=(
            "Month-end Closing", "Accounts Payable", "Accounts Receivable", "Payroll", "IFRS", "Tax Returns", "SAP",
            "Excel", "Budgeting", "Reconciliation", "Power BI",
        ),
        deeds=(
            "took charge of {skill}",
            "handled {skill} for three entities",
            "reworked {skill} from scratch",
            "did {skill} without an audit remark",
        ),
    ),
    Occupation(
        titles=("Marketing Specialist", "Digital Marketer", "Growth Marketer"),
        domains=("outdoor gear", "language courses", "home solar", "cosmetics"),
        skills=(
            "SEO", "Paid Search", "Email Marketing", "Copywriting", "Web Analytics", "Content Strategy", "Social Media",
            "CRM", "Brand Design", "A/B Testing", "Excel",
        ),
        deeds=(
            "grew sign-ups by means of {skill}",
            "took over {skill} for two brands",
            "planned launches with {skill}",
            "doubled enquiries through {skill}",
        ),
    ),
    Occupation(
        titles=("Mechanical Engineer", "Design Engineer", "Product Engineer"),
        domains=("heat pumps", "medical pumps", "e-bikes", "packaging machines"),
        skills=(
            "CAD", "Finite Element Analysis", "Tolerance Analysis", "Injection Moulding", "CNC Machining",
            "Thermal Design", "FMEA", "Rapid Prototyping", "Sheet Metal Design", "MATLAB", "Excel",
        ),
        deeds=(
            "designed housings with {skill}",
            "brought two products to series using {skill}",
            "shortened development through {skill}",
            "wrote test plans for {skill}",
        ),
    ),
)

SENIORITY: dict[str, tuple[str, ...]] = {
    "junior": ("junior", "entry-level", "graduate"),
    "mid-level": ("mid-level", "intermediate"),
    "senior": ("senior", "experienced"),
    "lead": ("lead", "principal"),
}
"""Levels of seniority from the lowest to the highest -> the words for each."""

ROLE_NOUNS = (
    "accountant", "analyst", "architect", "consultant", "designer", "developer", "engineer", "manager", "marketer",
    "nurse", "programmer", "researcher", "scientist", "specialist", "technician",
)
"""The last word of a job title: a seniority word counts only in front of one."""

NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen",
)
"""NUMBER_WORDS[n] says n."""
